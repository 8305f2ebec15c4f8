"""Streaming readers for JSON arrays, objects that map ids to rows, and concatenated JSON objects."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.encodings import find_stray_byte
from gladstone.rows.json_lines import DECODER, reason, stray_byte
from gladstone.rows.problems import FileDamage, Note
from gladstone.rows.row_types import MAX_ROW_BYTES, RowItem, readable_fields

CHUNK_BYTES = 1 << 16
KEPT_CHARS = 1 << 12  # kept while searching: the beginning of a row is shorter than this
_SPACE = re.compile(r"[ \t\r\n]*")
_FIELD = re.compile(r'\{\s*"((?:[^"\\]|\\.){1,200})"\s*:')
_NEXT_OBJECT = re.compile(r'\}\s*,?\s*(?:"[^"]{1,200}"\s*:\s*)?\{')


def read_array(file: BinaryIO, path: Path) -> Iterator[RowItem]:
    """Yield the rows of a JSON array, or of an object that maps ids to rows (PubMedQA's own layout)."""
    window = _Window(_decoded_chunks(file), path)
    opening = window.next_char()
    if not opening:
        raise DataError(f"{path}: the data file is empty.")
    if opening not in "[{":
        raise DataError(
            f"{window.source}: expected a JSON array ('['), found {opening!r}. Name JSON Lines files .jsonl."
        )
    window.skip()
    yield from _Rows(window, path, "]" if opening == "[" else "}").read()


def read_values(file: BinaryIO, path: Path) -> Iterator[RowItem]:
    """Yield JSON objects that follow one another, each over any number of lines."""
    yield from _Rows(_Window(_decoded_chunks(file), path), path, "").read()


class _Rows:
    """The rows of an array (`closing` is ']'), of an object ('}'), or of concatenated objects ('').

    After a broken row, reading resumes at the next object that is certain to be a row: it begins with the same field
    and has all fields that the rows so far have in common. Raises DataError if there is no such object.
    """

    def __init__(self, window: "_Window", path: Path, closing: str) -> None:
        self._window, self._path, self._closing = window, path, closing
        self._first: str | None = None  # the first field of a row
        self._common: set[str] | None = None
        self._alike = True  # all rows so far begin with the same field

    def read(self) -> Iterator[RowItem]:
        window, closing = self._window, self._closing
        char = window.next_char()
        while char and char != closing:
            # after a broken row, the search has already moved past the id of the next
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

    def _pass_comma(self, source: str) -> Iterator[RowItem]:
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
        """Move to the next row, or to the end if the last row is broken; yield an error for each broken row passed."""
        window = self._window
        first = self._first or window.first_field()
        if first is None:
            raise error
        opening = re.compile(r"\{\s*" + re.escape(json.dumps(first, ensure_ascii=False, allow_nan=False)) + r"\s*:")
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
            raise DataError(f"{error} The next row after it cannot be identified with certainty.")
        yield error
        window.to_end(self._closing)


def _skip_key(window: "_Window", path: Path) -> str:
    source = window.source
    key = window.value()
    if not isinstance(key, str) or window.next_char() != ":":
        raise DataError(f"{source}: expected the id of a row: a string followed by ':'.")
    window.skip()
    if window.next_char() not in ("{", ""):
        raise DataError(
            f"{path}: the file is one object whose field {readable_fields([key])} is not a row; expected an array of "
            "rows ('[') or an object that maps ids to rows. Name JSON Lines files .jsonl."
        )
    return source


class _Window:
    """A sliding window over a JSON text; text before the read position is released."""

    def __init__(self, chunks: Iterator[str], path: Path) -> None:
        self._chunks, self._path = chunks, path
        self._text, self._position = "", 0
        self._line, self._columns_before = 1, 0  # position of the window's first character
        self._counted, self._counted_lines = 0, 0
        self._has_stray = False
        self.stray = 0  # a byte of the last value that is not UTF-8, or 0
        self.passed_objects = False  # set by the last `seek`

    @property
    def source(self) -> str:
        """`file:line` of the read position."""
        self._counted_lines += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return f"{self._path}:{self._line + self._counted_lines}"

    def next_char(self) -> str:
        """Return the next character that is not a space, without consuming it; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._grow():
                return ""

    def skip(self) -> None:
        """Advance by one character."""
        self._position += 1

    def value(self, *, consume: bool = True) -> Any:
        """Parse the JSON value at the read position. Raises DataError, without moving, if it is invalid or too long."""
        source = self.source
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # an incomplete value fails like an invalid one: read more before giving up
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
                self.stray = find_stray_byte(self._text, self._position, end) if self._has_stray else 0
                self._position = end if consume else self._position
                return value

    def first_field(self) -> str | None:
        """Return the first field of the object at the read position, which may be broken; None if there is none."""
        match = _FIELD.match(self._text, self._position)
        return match[1] if match else None

    def seek(self, opening: re.Pattern[str]) -> bool:
        """Move to the next match after the read position; False at the end.

        Sets `passed_objects` if objects may lie between.
        """
        self.passed_objects = False
        while True:
            match = opening.search(self._text, self._position + 1)
            end = match.start() if match else len(self._text)
            self.passed_objects = self.passed_objects or bool(_NEXT_OBJECT.search(self._text, self._position + 1, end))
            if match:
                self._position = match.start()
                return True
            self._position = max(self._position, len(self._text) - KEPT_CHARS)
            if not self._grow():
                return False

    def to_end(self, closing: str) -> None:
        """Move to the last character of the text if it is `closing`, otherwise past it."""
        kept = self._text.rstrip()
        at_closing = closing and kept.endswith(closing) and len(kept) - 1 > self._position
        self._position = len(kept) - 1 if at_closing else len(self._text)

    def _grow(self) -> bool:
        """Read as much again as the window holds, at least one chunk; False at the end of the file."""
        _ = self.source  # counts the lines before they are released
        behind, self._text = self._text[: self._position], self._text[self._position :]
        self._line += self._counted_lines
        newline = behind.rfind("\n")
        self._columns_before = len(behind) - newline - 1 + (self._columns_before if newline < 0 else 0)
        self._position = self._counted = self._counted_lines = 0
        parts, wanted = [self._text], max(1, len(self._text))
        while wanted > 0 and (chunk := next(self._chunks, "")):
            parts.append(chunk)
            self._has_stray = self._has_stray or (not chunk.isascii() and bool(find_stray_byte(chunk)))
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
