"""JSON Lines and JSON arrays, read in pieces, each row with the line it starts on."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.limits import MAX_ROW_BYTES, Found, readable_fields

CHUNK_BYTES = 1 << 16
MAX_BLANK_LINES = 100_000  # a file of nothing but line ends would keep the loop busy for minutes


def decoded_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Number and text of each line; a line that is too long or not UTF-8 comes as its error.

    Raises DataError for blank lines without end.
    """
    number = blank = 0
    # by "\n" alone: U+2028 inside a JSON string ends no line
    while data := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        blank = 0 if data.strip() else blank + 1
        if blank > MAX_BLANK_LINES:
            raise DataError(f"{path}:{number}: {MAX_BLANK_LINES:,} blank lines before it; not read any further.")
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
    """The one message for bytes that are no UTF-8."""
    return DataError(f"{source}: not UTF-8 (byte 0x{error.object[error.start]:02x}). Save the file as UTF-8.")


def read_lines(file: BinaryIO, path: Path) -> Iterator[Found]:
    """JSON Lines: one value a line; blank lines hold none."""
    empty = True
    for number, line in decoded_lines(file, path):
        source = f"{path}:{number}"
        if isinstance(line, DataError):
            empty = False
            yield line
        elif line.strip():
            empty = False
            try:
                yield _DECODER.decode(line.rstrip("\r\n")), source
            except (ValueError, RecursionError) as error:
                yield DataError(f"{source}: not a JSON value: {_reason(error)}.")
    if empty:
        raise DataError(f"{path}: the data file is empty.")


def read_array(file: BinaryIO, path: Path) -> Iterator[Found]:
    """A JSON array of rows, or an object of rows by their ids (PubMedQA's own layout)."""
    window = _Window(_decoded_chunks(file, path), path)
    opening = window.next_char()
    if not opening:
        raise DataError(f"{path}: the data file is empty.")
    if opening not in "[{":
        raise DataError(f"{window.source}: expected a JSON array ('['), found {opening!r}. Name JSON Lines .jsonl.")
    window.skip()
    closing = "]" if opening == "[" else "}"
    char = window.next_char()
    while char and char != closing:
        source = window.source
        if opening == "{":
            source = _skip_key(window, path)
        yield window.value(), source
        char = window.next_char()
        if char == ",":
            window.skip()
            char = window.next_char()
        elif char and char != closing:
            raise DataError(f"{source}: expected ',' or {closing!r} after the row that starts here.")
    kind = "array" if opening == "[" else "object"
    if not char:
        raise DataError(f"{path}: the JSON {kind} is cut short: no closing {closing!r}.")
    window.skip()
    if window.next_char():
        raise DataError(f"{path}: there is more text after the closing {closing!r} of the {kind}.")


def _skip_key(window: "_Window", path: Path) -> str:
    source = window.source
    key = window.value()
    if not isinstance(key, str) or window.next_char() != ":":
        raise DataError(f"{source}: expected the id of a row, a text and ':'.")
    window.skip()
    if window.next_char() not in ("{", ""):
        raise DataError(
            f"{path}: the file is one object whose field {readable_fields([key])} is no row; expected an array of rows "
            "('[') or an object of rows by their ids. Name JSON Lines .jsonl."
        )
    return source


class _Window:
    """The stretch of a JSON text around the place of reading; what lies behind is let go."""

    def __init__(self, chunks: Iterator[str], path: Path) -> None:
        self._chunks, self._path = chunks, path
        self._text, self._position = "", 0
        self._line, self._columns_before = 1, 0  # of the window's first character
        self._counted, self._counted_lines = 0, 0

    @property
    def source(self) -> str:
        """`file:line` of the place of reading."""
        self._counted_lines += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return f"{self._path}:{self._line + self._counted_lines}"

    def next_char(self) -> str:
        """The next character that is no space, not consumed; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._grow():
                return ""

    def skip(self) -> None:
        """Go past one character."""
        self._position += 1

    def value(self) -> Any:
        """The JSON value that starts here, consumed. Raises DataError if there is none, or one too long."""
        source = self.source
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError as error:
                # a value that has not arrived whole looks like a wrong one
                if len(self._text) - self._position > MAX_ROW_BYTES:
                    raise DataError(
                        f"{source}: the row that starts here is not JSON, or longer than {MAX_ROW_BYTES >> 20} MiB."
                    ) from None
                column = error.colno + (self._columns_before if error.lineno == 1 else 0)
                if not self._grow():
                    raise DataError(
                        f"{source}: the row that starts here is not JSON: {error.msg} (column {column})."
                    ) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{source}: the row that starts here is not JSON: {_reason(error)}.") from None

    def _grow(self) -> bool:
        """Take in as much again as is in sight, at least one chunk; False at the end of the file."""
        _ = self.source  # counts the lines that are let go
        behind, self._text = self._text[: self._position], self._text[self._position :]
        self._line += self._counted_lines
        newline = behind.rfind("\n")
        self._columns_before = len(behind) - newline - 1 + (self._columns_before if newline < 0 else 0)
        self._position = self._counted = self._counted_lines = 0
        parts, wanted = [self._text], max(1, len(self._text))
        while wanted > 0 and (chunk := next(self._chunks, "")):
            parts.append(chunk)
            wanted -= len(chunk)
        self._text = "".join(parts)
        return len(parts) > 1


def _decoded_chunks(file: BinaryIO, path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    while data := file.read(CHUNK_BYTES):
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise not_utf8(f"{path}:{line}", error) from None
        line += data.count(b"\n")
        if text:
            yield text
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(f"{path}:{line}", error) from None


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


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, _WrongObjectError):
        return str(error)
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else "a number too long"
