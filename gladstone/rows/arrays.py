"""JSON arrays, objects of rows by their ids, and objects one after the other; read in pieces, each row with a line."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.limits import MAX_ROW_BYTES, FileDamage, Found, Note, readable_fields
from gladstone.rows.texts import DECODER, reason, stray_byte

CHUNK_BYTES = 1 << 16
KEPT_CHARS = 1 << 12  # of what is searched: the opening of a row is not longer
_SPACE = re.compile(r"[ \t\r\n]*")
_STRAY = re.compile("[\udc80-\udcff]")  # what a byte that is no UTF-8 is decoded to
_FIELD = re.compile(r'\{\s*"((?:[^"\\]|\\.){1,200})"\s*:')
_NEXT_OBJECT = re.compile(r'\}\s*,?\s*(?:"[^"]{1,200}"\s*:\s*)?\{')


def read_array(file: BinaryIO, path: Path) -> Iterator[Found]:
    """A JSON array of rows, or an object of rows by their ids (PubMedQA's own layout)."""
    window = _Window(_decoded_chunks(file), path)
    opening = window.next_char()
    if not opening:
        raise DataError(f"{path}: the data file is empty.")
    if opening not in "[{":
        raise DataError(f"{window.source}: expected a JSON array ('['), found {opening!r}. Name JSON Lines .jsonl.")
    window.skip()
    yield from _Rows(window, path, "]" if opening == "[" else "}").read()


def read_values(file: BinaryIO, path: Path) -> Iterator[Found]:
    """JSON objects one after the other, each over as many lines as it likes."""
    yield from _Rows(_Window(_decoded_chunks(file), path), path, "").read()


class _Rows:
    """The rows of an array (`closing` is ']'), of an object ('}'), or one after the other ('').

    A broken row costs itself where the next one can be found for sure: an object that begins with the same field and
    has all fields that the rows so far have in common. Raises DataError where it cannot.
    """

    def __init__(self, window: "_Window", path: Path, closing: str) -> None:
        self._window, self._path, self._closing = window, path, closing
        self._first: str | None = None  # field of a row
        self._common: set[str] | None = None
        self._alike = True  # all begin with the same field

    def read(self) -> Iterator[Found]:
        window, closing = self._window, self._closing
        char = window.next_char()
        while char and char != closing:
            # behind a broken row the id of the next is not looked for
            source = window.source if closing != "}" or char == "{" else _skip_key(window, self._path)
            try:
                row = window.value()
            except FileDamage:
                raise
            except DataError as error:
                yield from self._find_next(error)
            else:
                self._learn(row)
                yield DataError(f"{source}: {stray_byte(window.stray)}.") if window.stray else (row, source)
                yield from self._pass_comma(source)
            char = window.next_char()
        self._check_end(char)

    def _pass_comma(self, source: str) -> Iterator[Found]:
        window, closing = self._window, self._closing
        char = window.next_char()
        if not closing or not char or char == closing:
            return
        if char == ",":
            window.skip()
        elif char == "{" and closing == "]":
            yield Note(f"{self._path}: rows without a comma between them", 1)
        else:
            error = f"{source}: expected ',' or {closing!r} after the row that starts here."
            yield from self._find_next(DataError(error))

    def _check_end(self, char: str) -> None:
        kind = "object" if self._closing == "}" else "array"
        if not self._closing:
            return
        if not char:
            raise DataError(f"{self._path}: the JSON {kind} is cut short: no closing {self._closing!r}.")
        self._window.skip()
        if self._window.next_char():
            raise DataError(f"{self._path}: there is more text after the closing {self._closing!r} of the {kind}.")

    def _learn(self, row: Any) -> None:
        if isinstance(row, dict) and row:
            first = next(iter(row))
            self._alike = self._first in (None, first) and self._alike
            self._first = self._first or first
            self._common = set(row) if self._common is None else self._common & set(row)

    def _find_next(self, error: DataError) -> Iterator[DataError]:
        """Go to the next row, or to the end where the last one is broken; an error for each broken row till there."""
        window = self._window
        first = self._first or window.first_field()
        if first is None:
            raise error
        opening = re.compile(r"\{\s*" + re.escape(json.dumps(first, ensure_ascii=False)) + r"\s*:")
        while window.seek(opening):
            try:
                row = window.value(consume=False)
            except FileDamage:
                raise
            except DataError as another:
                yield error
                error = another
                continue
            if isinstance(row, dict) and (self._common or {first}) <= set(row):
                yield error
                return
        if window.passed_objects and (self._first is None or not self._alike):
            raise DataError(f"{error} No row behind it can be told for sure.")
        yield error
        window.to_end(self._closing)


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
        self._has_stray = False
        self.stray = 0  # a byte of the last value that is no UTF-8
        self.passed_objects = False  # on the last search

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

    def value(self, *, consume: bool = True) -> Any:
        """The JSON value that starts here. Raises DataError if there is none, or one too long, and stays before it."""
        source = self.source
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # a value that has not arrived whole looks like a wrong one
                if len(self._text) - self._position > MAX_ROW_BYTES:
                    limit = MAX_ROW_BYTES >> 20
                    raise DataError(
                        f"{source}: the row that starts here is not JSON, or longer than {limit} MiB."
                    ) from None
                column = error.colno + (self._columns_before if error.lineno == 1 else 0)
                sure = not error.msg.startswith("Unterminated") and error.pos + 100 < len(self._text)
                if sure or not self._grow():
                    raise DataError(
                        f"{source}: the row that starts here is not JSON: {error.msg} (column {column})."
                    ) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{source}: the row that starts here is not JSON: {reason(error)}.") from None
            else:
                stray = _STRAY.search(self._text, self._position, end) if self._has_stray else None
                self.stray = ord(stray[0]) - 0xDC00 if stray else 0
                self._position = end if consume else self._position
                return value

    def first_field(self) -> str | None:
        """The first field of the object that starts here, broken as it may be; None if there is none."""
        found = _FIELD.match(self._text, self._position)
        return found[1] if found else None

    def seek(self, opening: re.Pattern[str]) -> bool:
        """Go to the next match behind this place; False at the end. `passed_objects`: others may lie between."""
        self.passed_objects = False
        while True:
            found = opening.search(self._text, self._position + 1)
            end = found.start() if found else len(self._text)
            self.passed_objects = self.passed_objects or bool(_NEXT_OBJECT.search(self._text, self._position + 1, end))
            if found:
                self._position = found.start()
                return True
            self._position = max(self._position, len(self._text) - KEPT_CHARS)
            if not self._grow():
                return False

    def to_end(self, closing: str) -> None:
        """Go to the last character of the text if it is `closing`, else behind it."""
        kept = self._text.rstrip()
        at_closing = closing and kept.endswith(closing) and len(kept) - 1 > self._position
        self._position = len(kept) - 1 if at_closing else len(self._text)

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
            self._has_stray = self._has_stray or (not chunk.isascii() and bool(_STRAY.search(chunk)))
            wanted -= len(chunk)
        self._text = "".join(parts)
        return len(parts) > 1


def _decoded_chunks(file: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    while data := file.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
