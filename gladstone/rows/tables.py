"""CSV and TSV: a header line that names the fields, then one record a row, quoted as RFC 4180 says."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gladstone.errors import DataError
from gladstone.rows.limits import MAX_FIELDS, MAX_ROW_BYTES, Found, readable_fields
from gladstone.rows.texts import decoded_lines

MAX_RECORD_LINES = 100_000


def read_commas(file: BinaryIO, path: Path) -> Iterator[Found]:
    """Fields between commas."""
    return _read(file, path, ",")


def read_tabs(file: BinaryIO, path: Path) -> Iterator[Found]:
    """Fields between tabs."""
    return _read(file, path, "\t")


def _read(file: BinaryIO, path: Path, delimiter: str) -> Iterator[Found]:
    lines = _Lines(file, path)
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _next(records, lines, path)
    if header is None:
        raise DataError(f"{path}: the data file is empty.")
    _check_header(header, f"{path}:1")
    while True:
        source = f"{path}:{lines.number + 1}"
        record = _next(records, lines, path)
        if record is None:
            return
        if len(record) == len(header):
            yield dict(zip(header, record, strict=True)), source
        elif record:  # a blank line is no row
            yield DataError(f"{source}: {len(record)} fields, but the header names {len(header)}.")


class _Lines:
    """The lines for csv.reader; a record longer than a row may be ends the reading."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._lines = decoded_lines(file, path)
        self.number, self.record_chars, self.record_lines = 0, 0, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, DataError):
            raise line
        self.record_chars += len(line)
        self.record_lines += 1
        if self.record_chars > MAX_ROW_BYTES or self.record_lines > MAX_RECORD_LINES:
            limit = f"{MAX_ROW_BYTES >> 20} MiB or {MAX_RECORD_LINES:,} lines"
            raise csv.Error(f"longer than {limit}; perhaps a closing quote is missing")
        return line


def _next(records: Iterator[list[str]], lines: _Lines, path: Path) -> list[str] | None:
    lines.record_chars = lines.record_lines = 0
    begin = lines.number + 1
    limit = csv.field_size_limit(MAX_ROW_BYTES)  # of the whole process, so it is put back
    try:
        return next(records, None)
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: the record that starts here is not CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _check_header(header: list[str], source: str) -> None:
    if len(header) > MAX_FIELDS:
        raise DataError(f"{source}: the header names {len(header):,} fields, more than {MAX_FIELDS:,}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{source}: the header names {readable_fields(twice)} more than once.")
