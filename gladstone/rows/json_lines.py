"""Reads JSON Lines, one row per line, and decodes JSON values strictly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.encodings import ADVICE
from gladstone.rows.row_types import MAX_ROW_BYTES, RowItem, readable_fields

MAX_BLANK_LINES = 100_000  # a file of line ends only would take minutes


def decoded_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield the number and text of each line; a line that is too long or not UTF-8 comes as its error.

    Raises DataError after too many blank lines.
    """
    number = blank = 0
    # split at "\n" only: U+2028 inside a JSON string does not end a line
    while data := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        blank = 0 if data.strip() else blank + 1
        if blank > MAX_BLANK_LINES:
            raise DataError(f"{path}:{number}: {MAX_BLANK_LINES:,} blank lines before it; reading stopped.")
        if len(data) > MAX_ROW_BYTES:
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_ROW_BYTES)
            yield number, DataError(f"{path}:{number}: the line is longer than {MAX_ROW_BYTES >> 20} MiB.")
            continue
        try:
            yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, not_utf8(f"{path}:{number}", error)


def not_utf8(source: str, error: UnicodeDecodeError) -> DataError:
    """Return the error for a text with bytes that are not UTF-8."""
    return DataError(f"{source}: {stray_byte(error.object[error.start])}.")


def stray_byte(byte: int) -> str:
    """Describe a text that contains this byte, which is not UTF-8."""
    return f"not UTF-8 (byte 0x{byte:02x}). {ADVICE}"


def read_lines(file: BinaryIO, path: Path) -> Iterator[RowItem]:
    """Yield the value of each JSON line; blank lines are skipped."""
    empty = True
    for number, line in decoded_lines(file, path):
        source = f"{path}:{number}"
        if isinstance(line, DataError):
            empty = False
            yield line
        elif line.strip():
            empty = False
            try:
                yield DECODER.decode(line.rstrip("\r\n")), source
            except (ValueError, RecursionError) as error:
                yield DataError(f"{source}: not a JSON value: {reason(error)}.")
    if empty:
        raise DataError(f"{path}: the data file is empty.")


class _WrongObjectError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _WrongObjectError(f"the field {readable_fields([twice])} is given twice")
    return result


def _constant(name: str) -> None:
    raise _WrongObjectError(f"{name} is no JSON value")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def reason(error: Exception) -> str:
    """Explain why a text is not a JSON value."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, _WrongObjectError):
        return str(error)
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else "a number too long"
