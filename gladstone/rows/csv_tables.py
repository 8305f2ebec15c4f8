"""Reads CSV and its variants: a header that names the fields, then one record per row, quoted according to RFC 4180.

After a damaged record, reading resumes at the next one, so that the count of bad rows is exact.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from gladstone.errors import DataError
from gladstone.rows.encodings import find_stray_byte
from gladstone.rows.json_lines import MAX_BLANK_LINES, stray_byte
from gladstone.rows.problems import Note
from gladstone.rows.row_types import MAX_FIELDS, MAX_ROW_BYTES, RowItem, readable_fields
from gladstone.rows.separators import SEPARATORS, find_separator

MAX_RECORD_LINES = 100_000
MAX_LOOKED_AT = 200  # lines after a damaged record, searched for the beginning of the next


def read_table(file: BinaryIO, path: Path, head: str, usual: str, *, whole: bool) -> Iterator[RowItem]:
    """Yield the rows of a table that begins with `head`; `usual` is the separator that the file's name suggests."""
    separator = find_separator(head, usual, whole=whole)
    if separator.char != usual or separator.lines:
        yield Note(f"{path}: fields are separated by {separator.name}, which was detected")
    if separator.char not in SEPARATORS and not separator.char.isprintable():
        raise DataError(f"{path}:1: sep= names {separator.char!r}, which cannot separate fields.")
    yield from _Table(file, path, separator.char).rows(separator.lines)


class _Table:
    """The records of a table, read with the csv module as long as they are intact."""

    def __init__(self, file: BinaryIO, path: Path, separator: str) -> None:
        self._path, self._separator = path, separator
        self._lines = _Lines(file, path)
        self._records = self._reader(self._lines)
        self._width, self._several_lines = 0, False

    def rows(self, skipped_lines: int) -> Iterator[RowItem]:
        header = self._header(skipped_lines)
        while True:
            self._lines.begin()
            source = f"{self._path}:{self._lines.number + 1}"
            try:
                record = self._next()
            except csv.Error as error:
                yield self._recover(f"{source}: the record that starts here is not CSV: {error}")
                continue
            if record is None:
                return
            if self._lines.flaw:
                yield self._recover(f"{source}: {self._lines.flaw}")
            elif len(record) == self._width:
                self._several_lines = self._several_lines or len(self._lines.taken) > 1
                yield dict(zip(header, record, strict=True)), source
            elif record:  # a blank line is not a row
                yield self._recover(f"{source}: {len(record)} fields, but the header names {self._width}")

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._separator, strict=True)

    def _next(self) -> list[str] | None:
        limit = csv.field_size_limit(MAX_ROW_BYTES)  # the limit is process-wide, so it is restored
        try:
            return next(self._records, None)
        finally:
            csv.field_size_limit(limit)

    def _header(self, skipped_lines: int) -> list[str]:
        for _ in range(skipped_lines):
            next(self._lines)
        header: list[str] | None = []
        while header == []:  # blank lines may precede it
            self._lines.begin()
            source = f"{self._path}:{self._lines.number + 1}"
            try:
                header = self._next()
            except csv.Error as error:
                raise DataError(f"{source}: the record that starts here is not CSV: {error}.") from None
        if header is None:
            raise DataError(f"{self._path}: the data file is empty.")
        if self._lines.flaw:
            raise DataError(f"{source}: {self._lines.flaw}.")
        self._width = len(header)
        return checked_header(header, source)

    def _recover(self, error: str) -> DataError:
        """Move to the beginning of the next record; return the error, with the lines that are left out."""
        lines = self._lines
        begin = lines.number - len(lines.taken) + 1
        behind = len(lines.taken)
        lines.look_ahead(MAX_LOOKED_AT)
        size = self._damaged_lines(lines.taken[: max(behind, MAX_LOOKED_AT)], behind)
        lines.give_back(size)
        more = f"; lines {begin:,} to {begin + size - 1:,} are left out" if size > 1 else ""
        return DataError(f"{error}{more}.")

    def _damaged_lines(self, lines: list[str], read: int) -> int:
        """Return how many of `lines` the damaged record takes up; `read` of them were read as one record.

        Either the record ends with its first line and has one quote too many, or it spans several lines. The lines
        after the first decide, since in the first case they are valid records themselves.
        """
        end = _balanced(lines)
        if end == 1 and read == 1:
            return 1
        if self._several_lines and self._goes_on(lines[1:]):
            return 1
        end = max(end, read) if read < len(lines) and end else end
        if end:
            good, others = self._sound(lines[1:end])
            if not good or (self._several_lines and good < others):
                return end
        if not self._several_lines:
            return 1
        return next((at for at in range(1, len(lines)) if self._goes_on(lines[at:])), len(lines))

    def _goes_on(self, lines: list[str]) -> bool:
        """True if the lines begin with two valid records, or are one."""
        records, begin = self._reader(iter(lines)), 0
        try:
            for record in islice(records, 2):
                if len(record) != self._width or _has_stray_quote(lines[begin], self._separator):
                    return False
                begin = records.line_num  # type: ignore[attr-defined]
        except csv.Error:
            return False
        return begin > 0

    def _sound(self, lines: list[str]) -> tuple[int, int]:
        """Count the lines that are valid records by themselves, and those that are not."""
        good = sum(
            self._fields([line]) == self._width
            and (line.count('"') % 2 == 0)
            and not _has_stray_quote(line, self._separator)
            for line in lines
        )
        return good, len(lines) - good

    def _fields(self, lines: list[str]) -> int:
        """Count the fields of the first record in the lines; 0 if it is damaged."""
        try:
            return len(next(self._reader(iter(lines)), []))
        except csv.Error:
            return 0


def checked_header(header: list[str], source: str) -> list[str]:
    """Return the field names, empty ones replaced by their position.

    Raises DataError for too many or duplicate names.
    """
    if len(header) > MAX_FIELDS:
        raise DataError(f"{source}: the header names {len(header):,} fields, more than {MAX_FIELDS:,}.")
    header = [name if name.strip() else f"column {number}" for number, name in enumerate(header, 1)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{source}: the header names {readable_fields(twice)} more than once.")
    return header


class _Lines:
    """The lines for csv.reader; those of the current record are kept, so that they can be read again."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._waiting: deque[tuple[str, str]] = deque()
        self._flaws: list[str] = []
        self.taken: list[str] = []
        self.number = self._chars = self._blank = 0

    @property
    def flaw(self) -> str:
        """What is wrong with the bytes of the current record; '' if nothing."""
        return next((flaw for flaw in self._flaws if flaw), "")

    def begin(self) -> None:
        """Release the last record."""
        self.taken, self._flaws, self._chars = [], [], 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._take()
        if self._chars > MAX_ROW_BYTES or len(self.taken) > MAX_RECORD_LINES:
            limit = f"{MAX_ROW_BYTES >> 20} MiB or {MAX_RECORD_LINES:,} lines"
            raise csv.Error(f"longer than {limit}; perhaps a closing quote is missing")
        return line

    def look_ahead(self, count: int) -> None:
        """Read further lines until at least `count` are buffered or the file ends."""
        try:
            while len(self.taken) < count and self._chars <= MAX_ROW_BYTES:
                self._take()
        except StopIteration:
            pass

    def give_back(self, kept: int) -> None:
        """Queue all lines but the first `kept` to be read again."""
        self._waiting.extendleft(reversed(list(zip(self.taken, self._flaws, strict=True))[kept:]))
        self.number -= len(self.taken) - kept
        self.begin()

    def _take(self) -> str:
        line, flaw = self._waiting.popleft() if self._waiting else self._read()
        self.number += 1
        self.taken.append(line)
        self._flaws.append(flaw)
        self._chars += len(line)
        return line

    def _read(self) -> tuple[str, str]:
        """Return a line and its flaw. Raises StopIteration at the end, DataError after too many blank lines."""
        data = self._file.readline(MAX_ROW_BYTES + 1)
        if not data:
            raise StopIteration
        self._blank = 0 if data.strip() else self._blank + 1
        if self._blank > MAX_BLANK_LINES:
            raise DataError(
                f"{self._path}:{self.number + 1}: {MAX_BLANK_LINES:,} blank lines before it; reading stopped."
            )
        if len(data) > MAX_ROW_BYTES:
            while data and not data.endswith(b"\n"):
                data = self._file.readline(MAX_ROW_BYTES)
            return "…\n", f"the line is longer than {MAX_ROW_BYTES >> 20} MiB"
        line = data.decode("utf-8", "surrogateescape")
        if self.number == 0:
            line = line.removeprefix("\ufeff")
        if "\0" in line:
            return line, "contains NUL bytes"
        stray = 0 if line.isascii() else find_stray_byte(line)
        return line, stray_byte(stray) if stray else ""


def _balanced(lines: list[str]) -> int:
    """Return after how many lines all quotes are paired; 0 if they never are."""
    quotes = 0
    for number, line in enumerate(lines, 1):
        quotes += line.count('"')
        if quotes % 2 == 0:
            return number
    return 0


def _has_stray_quote(line: str, separator: str) -> bool:
    """True for a quote outside whole quoted fields and outside a field that continues on the next line."""
    between = re.escape(separator)
    rest = re.sub(rf'(?:^|(?<={between}))"(?:[^"]|"")*(?:"(?={between}|[\r\n]*$)|$)', "", line)
    return '"' in rest
