"""Data files to rows: JSON arrays and JSON Lines, each row with the line it starts on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gladstone.errors import DataError

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """Yield each row of a .json or .jsonl file with its source, `file:line`.

    Raises DataError if the file is missing, empty, not UTF-8, not JSON, or holds something else than objects.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, expected .json or .jsonl.")
    text = _read_text(path)
    count = 0
    values = _read_array(text, path) if path.suffix == ".json" else _read_lines(text, path)
    for value, source in values:
        if not isinstance(value, dict):
            raise DataError(f"{source}: expected an object with named fields, found {_kind(value)}.")
        count += 1
        yield value, source
    if count == 0:
        raise DataError(f"{path}: holds no rows.")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save the file as UTF-8.") from None
    if not text.strip():
        raise DataError(f"{path}: the data file is empty.")
    return text


def _read_lines(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    # split("\n"), not splitlines(): U+2028 inside a JSON string is no line end
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            yield json.loads(line), source
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: not a JSON value: {_reason(error)}.") from None


def _read_array(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Walk the top-level array value by value, so that each row knows its line."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    if text[position] != "[":
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path}:{line}: expected a JSON array ('['), found {text[position]!r}. Name JSON Lines .jsonl."
        )
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    while position < len(text) and text[position] != "]":
        line += text.count("\n", counted, position)
        counted = position
        source = f"{path}:{line}"
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: the row that starts here is not JSON: {_reason(error)}.") from None
        yield value, source
        position = _skip_space(text, position)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
        elif position < len(text) and text[position] != "]":
            raise DataError(f"{source}: expected ',' or ']' after the row that starts here.")
    if position >= len(text):
        raise DataError(f"{path}: the JSON array is cut short: no closing ']'.")
    if text[position + 1 :].strip():
        raise DataError(f"{path}: there is more text after the closing ']' of the array.")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else "a number too long"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names[type(value)]
