"""Values of a GGUF header, read from an untrusted file in bounded memory and time."""

import mmap
import struct
import sys
from typing import Any

from gladstone.gguf.check_model import DamagedError
from gladstone.gguf.types import ValueType

SCALARS: dict[int, str] = {  # codes of `struct`
    ValueType.U8: "<B", ValueType.I8: "<b", ValueType.U16: "<H", ValueType.I16: "<h", ValueType.U32: "<I",
    ValueType.I32: "<i", ValueType.F32: "<f", ValueType.BOOL: "<B", ValueType.U64: "<Q", ValueType.I64: "<q",
    ValueType.F64: "<d",
}  # fmt: skip
MAX_ITEMS = 2_000_000  # of an array; the largest known vocabulary has 262,144 tokens and 514,906 merges
NUMBER_BYTES, TEXT_BYTES = 40, 40  # Python's memory for a number in a list; for a text beyond its characters
LEAST_BUDGET_BYTES = 150_000_000
LONG_TEXT_BYTES = 1_000_000  # a longer text is measured before it is decoded; no known chat template is as long


class Cursor:
    """Reads values one after another; never past the file's end, nor into more memory than a sound header needs."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._budget_bytes = LEAST_BUDGET_BYTES + self._size // 4
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """Read the next `count` bytes. Raises DamagedError if the file ends before."""
        end = self.position + count
        if end > self._size:
            raise self._cut(what, self.position)
        chunk = self._data[self.position : end]
        self.position = end
        return chunk

    def scalar(self, code: str, what: str) -> Any:
        """Read the next number in the `struct` format `code`. Raises DamagedError as `take` does."""
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        """Read the next text; bytes that are not UTF-8 become surrogates.

        Raises DamagedError if it is longer than `limit` bytes, cut off, or too large for the memory budget.
        """
        length, most = self.scalar("<Q", what), self._size if limit is None else limit
        if length > most:
            raise DamagedError(f"{what} claims {length:,} bytes, more than {most:,}")
        self._spend(length, what)  # before decoding
        raw = self.take(length, what)
        self._check_width(raw, what)
        text = raw.decode("utf-8", "surrogateescape")
        self._spend(sys.getsizeof(text) - length, what)
        return text

    def value(self, kind: int, what: str, most: int = MAX_ITEMS) -> tuple[Any, int | None]:
        """Read the next value of the type `kind`; returns it and the type of an array's items (else None).

        Raises DamagedError for an unknown type, an array of more than `most` items, or what `text` raises it for.
        """
        if kind == ValueType.ARRAY:
            return self._array(what, most)
        if kind == ValueType.STRING:
            return self.text(what), None
        if kind not in SCALARS:
            raise DamagedError(f"{what} has the unknown value type {kind}")
        number = self.scalar(SCALARS[kind], what)
        if kind == ValueType.BOOL and number > 1:
            raise DamagedError(f"{what} should be true or false and is {number}")
        return (bool(number) if kind == ValueType.BOOL else number), None

    def _array(self, what: str, most: int) -> tuple[list[Any], int]:
        kind, count = self.scalar("<I", what), self.scalar("<Q", what)
        if kind == ValueType.ARRAY:  # the format allows it, but llama.cpp reads no such file
            raise DamagedError(f"{what} holds arrays inside an array")
        if kind != ValueType.STRING and kind not in SCALARS:
            raise DamagedError(f"{what} has the unknown value type {kind}")
        least = struct.calcsize(SCALARS[kind]) if kind in SCALARS else 8
        if count * least > self._size - self.position:
            raise DamagedError(f"{what} claims {count:,} values, more than the rest of the file can hold")
        if count > most:
            raise DamagedError(f"{what} claims {count:,} values, expected no more than {most:,}")
        if kind == ValueType.STRING:
            return self._texts(count, what), kind
        self._spend(NUMBER_BYTES * count, what)
        raw = self.take(least * count, what)
        if kind != ValueType.BOOL:
            return list(struct.unpack(f"<{count}{SCALARS[kind][1]}", raw)), kind
        if raw.strip(b"\x00\x01"):
            raise DamagedError(f"{what} should hold true or false only")
        return list(map(bool, raw)), kind

    def _texts(self, count: int, what: str) -> list[str]:
        self._spend(TEXT_BYTES * count, what)
        texts: list[str] = []
        length_at, data, size, position = struct.Struct("<Q").unpack_from, self._data, self._size, self.position
        sizes = 0
        for number in range(count):
            begin = position + 8
            if begin > size:
                raise self._cut(what, position)
            length = length_at(data, position)[0]
            position = begin + length
            if position > size:
                raise DamagedError(f"{what} claims {length:,} bytes for text {number + 1:,}, more than the file has")
            raw = data[begin:position]
            if length > LONG_TEXT_BYTES:
                self._check_width(raw, what)
            texts.append(raw.decode("utf-8", "surrogateescape"))
            sizes += sys.getsizeof(texts[-1])
            if sizes > self._budget_bytes:
                break
        self._spend(sizes, what)
        self.position = position
        return texts

    def _check_width(self, raw: bytes, what: str) -> None:
        """Raise DamagedError if a text is too large once decoded: one emoji makes every character take 4 bytes."""
        if len(raw) <= LONG_TEXT_BYTES or raw.isascii():
            return
        width = 4 if any(lead in raw for lead in range(0xF0, 0xF8)) else 2
        if width * len(raw) > self._budget_bytes:
            raise self._too_large(what)

    def _spend(self, count: int, what: str) -> None:
        self._budget_bytes -= count
        if self._budget_bytes < 0:
            raise self._too_large(what)

    def _too_large(self, what: str) -> DamagedError:
        return DamagedError(f"{what} would take more memory than the header of a model of this size can need")

    def _cut(self, what: str, position: int) -> DamagedError:
        return DamagedError(f"it ends inside {what} (byte {position:,}): the file is cut short or damaged")
