"""Opening a data file: plain, gzip or zstd by its first bytes, with a guard against files that unpack without end."""

import io
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from gladstone.command import require_packages
from gladstone.errors import DataError
from gladstone.rows.limits import FileDamage

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# text shrinks to a third or a tenth; a file that unpacks to 200 times its size was made to do so
MAX_RATIO, MIN_SUSPECT_BYTES = 200, 64 << 20
CHUNK_BYTES = 1 << 16
PIECE_BYTES = 1 << 13  # of what is unpacked at once: so little is lost where a file is damaged
DAMAGE = (EOFError, zlib.error, OSError)


def first_bytes(path: Path, count: int = 16) -> bytes:
    """The first bytes as they lie on disk. Raises DataError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None


def packing(start: bytes) -> str:
    """`gzip`, `zstd`, or '' for a file that is not compressed."""
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")


def unpacked(path: Path, packed: str) -> Iterator[bytes]:
    """The file's bytes in chunks, unpacked. Raises DataError for damage and for a bomb, behind what lies before it."""
    limit = max(MIN_SUSPECT_BYTES, MAX_RATIO * path.stat().st_size)
    made = 0
    try:
        for chunk in _chunks(path, packed):
            made += len(chunk)
            if packed and made > limit:
                raise FileDamage(f"{path}: unpacks to more than {MAX_RATIO} times its size; not read any further.")
            yield chunk
    except DAMAGE as error:
        reason = f"is no whole {packed} file" if packed else "cannot be read"
        raise FileDamage(f"{path}: {reason}: {error}.") from None


def _chunks(path: Path, packed: str) -> Iterator[bytes]:
    if packed == "zstd":
        require_packages("Reading zstd", "finetune", ["pyarrow"])
        import pyarrow

        with closing(pyarrow.input_stream(str(path), compression="zstd")) as stream:
            while data := stream.read(PIECE_BYTES):
                yield data
        return
    with path.open("rb") as file:
        if packed == "gzip":
            yield from _gunzip(file)
            return
        while data := file.read(CHUNK_BYTES):
            yield data


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """What the members of a gzip file hold: Python's own reader drops what it has unpacked when the file is cut."""
    decoder = None
    while data := file.read(CHUNK_BYTES):
        while data:
            decoder = decoder or zlib.decompressobj(wbits=31)
            if made := decoder.decompress(data, PIECE_BYTES):
                yield made
            data = decoder.unconsumed_tail
            if decoder.eof:
                data, decoder = decoder.unused_data.lstrip(b"\0"), None
    if decoder is None:
        return
    if made := decoder.flush():
        yield made
    if not decoder.eof:
        raise EOFError("it ends before its end mark")


def take(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes or somewhat more, and the rest; damage that comes first is raised by the rest."""
    head: list[bytes] = []
    found = 0
    try:
        while found < size:
            head.append(next(chunks))
            found += len(head[-1])
    except StopIteration:
        return b"".join(head), iter(())
    except DataError as error:
        return b"".join(head), _raising(error)
    return b"".join(head), chunks


def _raising(error: DataError) -> Iterator[bytes]:
    raise error
    yield b""  # makes this a generator: the error waits for its turn


def as_file(chunks: Iterator[bytes]) -> BinaryIO:
    """The chunks as a file to read from."""
    return cast(BinaryIO, io.BufferedReader(_Chunks(chunks), CHUNK_BYTES))


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._waiting = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._waiting = memoryview(chunk)
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count
