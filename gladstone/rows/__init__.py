"""Reads data files row by row: JSON, JSON Lines, CSV, Excel, Parquet and MedQuAD's XML, plain or gzip/zstd-compressed.

Input files are untrusted: sizes are bounded, and memory does not grow with the file. The content decides how a file is
read; if it contradicts the file's name, a note says so.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from gladstone.errors import DataError
from gladstone.rows import csv_tables, excel, json_arrays, json_lines, kinds, medquad_xml, parquet
from gladstone.rows.compression import COMPRESSED, as_file, decompress, detect_compression, first_bytes, split_head
from gladstone.rows.encodings import as_utf8, check_encoding
from gladstone.rows.problems import Note, Problems
from gladstone.rows.row_types import DEFAULT_OPTIONS, MAX_FIELDS, ReadOptions, Row, RowItem, kind_of, readable_fields

__all__ = [
    "DEFAULT_OPTIONS",
    "ENDINGS",
    "Problems",
    "ReadOptions",
    "Row",
    "check_encoding",
    "read_rows",
    "readable_fields",
]

ENDINGS = ".json, .jsonl, .csv, .tsv, .xml (each also with .gz or .zst), .xlsx, .parquet, or a folder of .xml files"
HEAD_BYTES = 1 << 20  # read ahead to find out what kind of file it is
READERS = {
    kinds.JSON: json_arrays.read_array,
    kinds.LINES: json_lines.read_lines,
    kinds.VALUES: json_arrays.read_values,
    kinds.XML: medquad_xml.read_pairs,
}
USUAL_SEPARATORS = {kinds.TABLE: ",", kinds.TABS: "\t"}


def read_rows(
    path: Path,
    problems: Problems | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Iterator[tuple[Row, str]]:
    """Yield each row of a file, or of a folder's XML files, with its source, `file:line`.

    A bad row is added to `problems` and reading continues after it; without `problems` the first bad row raises. Notes
    about the file go to `problems` as well. Raises DataError if the file is missing, empty, truncated or of an
    unsupported kind, or if it has no rows.
    """
    empty = True
    for item in _read_files(path, problems, options):
        if isinstance(item, Note):
            if problems is not None:
                problems.note(item.text, item.rows)
            continue
        empty = False
        error = item if isinstance(item, DataError) else _flaw(*item)
        if error is None:
            yield item  # type: ignore[misc]
        elif problems is None:
            raise error
        else:
            problems.add(error)
    if empty and not (problems and problems.unread):
        raise DataError(f"{path}: holds no rows.")


def _read_files(path: Path, problems: Problems | None, options: ReadOptions) -> Iterator[RowItem]:
    """Yield what the files hold; damage that ends a file comes last, so that the rows before it are kept."""
    for file in _files(path):
        begun = path.is_dir()
        try:
            for item in _read_file(file, options):
                begun = begun or not isinstance(item, Note)
                yield item
        except DataError as error:
            if problems is None or not begun:
                raise
            problems.lose(error)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.xml"))
    if not files:
        raise DataError(f"{path}: a folder without .xml files (the layout of MedQuAD). Give the data file itself.")
    return files


def _read_file(path: Path, options: ReadOptions) -> Iterator[RowItem]:
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    named = kinds.KINDS.get(name.suffix.lower())
    if named is None:
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, expected {ENDINGS}.")
    start = first_bytes(path)
    compression = detect_compression(start)
    if compression != COMPRESSED.get(path.suffix, "") and start:
        actual = f"compressed with {compression}" if compression else "not compressed"
        yield Note(f"{path}: {actual}, although its name suggests otherwise")
    head, rest = split_head(decompress(path, compression), HEAD_BYTES)
    kind = kinds.binary_kind(path, head)
    if kind and compression:
        raise DataError(f"{path}: is {kinds.KIND_NAMES[kind]}, compressed with {compression}. Unpack it first.")
    if not kind and named in (kinds.PARQUET, kinds.SHEET) and not _is_text(head):
        kind = named  # the reader of that kind reports what is wrong
    if kind:
        yield from _misnamed(path, named, kind)
        yield from parquet.read_table(path) if kind == kinds.PARQUET else excel.read_sheet(path, options.sheet)
        return

    def again() -> Iterator[bytes]:
        return decompress(path, compression)

    whole = len(head) < HEAD_BYTES
    chunks = as_utf8(path, head, rest, lambda: as_file(again()), options.encoding)
    yield from _read_text(path, chunks, named, whole=whole)


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and b"\0" not in head[:1024] and (head[:1024].isascii() or head[:3] == codecs.BOM_UTF8)


def _misnamed(path: Path, named: str, kind: str) -> Iterator[Note]:
    if kinds.KIND_NAMES[kind] != kinds.KIND_NAMES[named]:
        yield Note(f"{path}: contains {kinds.KIND_NAMES[kind]}, although its name suggests {kinds.KIND_NAMES[named]}")


def _read_text(path: Path, chunks: Iterator[bytes | Note], named: str, *, whole: bool) -> Iterator[RowItem]:
    """Yield the rows of a text that arrives as UTF-8 bytes; notes that arrive with them are passed on."""
    notes: list[Note] = []

    def only_bytes() -> Iterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Note):
                notes.append(chunk)
            else:
                yield chunk

    head_bytes, rest = split_head(only_bytes(), HEAD_BYTES)
    head = head_bytes.decode("utf-8-sig", "replace")
    pieces = _joined(head_bytes, rest)
    if "\r" in head and "\n" not in head:
        notes.append(Note(f"{path}: lines end with CR only"))
        pieces = (piece.replace(b"\r", b"\n") for piece in pieces)
        head = head.replace("\r", "\n")
    kind = kinds.text_kind(path, head, named, whole=whole)
    notes += _misnamed(path, named, kind)
    file = as_file(pieces)
    if kind in USUAL_SEPARATORS:
        items = csv_tables.read_table(file, path, head, USUAL_SEPARATORS[kind], whole=whole)
    elif kind in READERS:
        items = READERS[kind](file, path)
    else:
        raise DataError(f"{path}: not {kinds.KIND_NAMES[named]}, nor any other supported format; expected {ENDINGS}.")
    for item in items:
        yield from notes
        notes.clear()
        yield item
    yield from notes


def _joined(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _flaw(row: object, source: str) -> DataError | None:
    if not isinstance(row, dict):
        return DataError(f"{source}: expected an object with named fields, found {kind_of(row)}.")
    if len(row) > MAX_FIELDS:
        return DataError(f"{source}: the row has {len(row):,} fields, more than {MAX_FIELDS:,}.")
    return None
