"""Data files to rows, one by one: JSON, JSON Lines, CSV, Excel, Parquet and MedQuAD's XML, also under gzip and zstd.

A file is hostile until proven otherwise: sizes are bounded, and memory does not grow with the file. It is read as what
it is, by its content; where that is not what its name says, a note says so.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from gladstone.errors import DataError
from gladstone.rows import arrays, kinds, medquad_xml, parquet, sheets, tables, texts
from gladstone.rows.encodings import as_utf8, check_encoding
from gladstone.rows.limits import AS_FOUND, MAX_FIELDS, Found, Note, Problems, Reading, Row, kind_of, readable_fields
from gladstone.rows.opened import COMPRESSED, as_file, first_bytes, packing, take, unpacked

__all__ = ["AS_FOUND", "ENDINGS", "Problems", "Reading", "Row", "check_encoding", "read_rows", "readable_fields"]

ENDINGS = ".json, .jsonl, .csv, .tsv, .xml (each also with .gz or .zst), .xlsx, .parquet, or a folder of .xml files"
HEAD_BYTES = 1 << 20  # of a file, to see what it is
READERS = {
    kinds.JSON: arrays.read_array,
    kinds.LINES: texts.read_lines,
    kinds.VALUES: arrays.read_values,
    kinds.XML: medquad_xml.read_pairs,
}
USUAL_SEPARATORS = {kinds.TABLE: ",", kinds.TABS: "\t"}


def read_rows(
    path: Path,
    problems: Problems | None = None,
    reading: Reading = AS_FOUND,
) -> Iterator[tuple[Row, str]]:
    """Yield each row of a file, or of a folder's XML files, with its source, `file:line`.

    A bad row is added to `problems`, and reading goes on behind it; without `problems` the first raises. What
    is noticed about the file goes to `problems` too. Raises DataError if the file is missing, empty, cut short or of a
    kind that is not read, or if there is no row at all.
    """
    empty = True
    for found in _found(path, problems, reading):
        if isinstance(found, Note):
            if problems is not None:
                problems.note(found.text, found.rows)
            continue
        empty = False
        error = found if isinstance(found, DataError) else _flaw(*found)
        if error is None:
            yield found  # type: ignore[misc]
        elif problems is None:
            raise error
        else:
            problems.add(error)
    if empty and not (problems and problems.unread):
        raise DataError(f"{path}: holds no rows.")


def _found(path: Path, problems: Problems | None, reading: Reading) -> Iterator[Found]:
    """What the files hold; damage that ends a file comes last, so that the rows before it are not lost."""
    for file in _files(path):
        begun = path.is_dir()
        try:
            for found in _read_file(file, reading):
                begun = begun or not isinstance(found, Note)
                yield found
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


def _read_file(path: Path, reading: Reading) -> Iterator[Found]:
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    named = kinds.KINDS.get(name.suffix.lower())
    if named is None:
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, expected {ENDINGS}.")
    start = first_bytes(path)
    packed = packing(start)
    if packed != COMPRESSED.get(path.suffix, "") and start:
        yield Note(f"{path}: {f'compressed with {packed}' if packed else 'not compressed'}, other than its name says")
    head, rest = take(unpacked(path, packed), HEAD_BYTES)
    kind = kinds.binary_kind(path, head)
    if kind and packed:
        raise DataError(f"{path}: is {kinds.WORDS[kind]} under {packed}. Unpack it first.")
    if not kind and named in (kinds.PARQUET, kinds.SHEET) and not _is_text(head):
        kind = named  # its reader says what is wrong
    if kind:
        yield from _misnamed(path, named, kind)
        yield from parquet.read_table(path) if kind == kinds.PARQUET else sheets.read_sheet(path, reading.sheet)
        return

    def again() -> Iterator[bytes]:
        return unpacked(path, packed)

    whole = len(head) < HEAD_BYTES
    chunks = as_utf8(path, head, rest, lambda: as_file(again()), reading.encoding)
    yield from _read_text(path, chunks, named, whole=whole)


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and b"\0" not in head[:1024] and (head[:1024].isascii() or head[:3] == codecs.BOM_UTF8)


def _misnamed(path: Path, named: str, kind: str) -> Iterator[Note]:
    if kinds.WORDS[kind] != kinds.WORDS[named]:
        yield Note(f"{path}: holds {kinds.WORDS[kind]}, other than its name says; read as that")


def _read_text(path: Path, chunks: Iterator[bytes | Note], named: str, *, whole: bool) -> Iterator[Found]:
    """The rows of a text whose bytes come in UTF-8; notes that come with them are passed on."""
    notes: list[Note] = []

    def only_bytes() -> Iterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Note):
                notes.append(chunk)
            else:
                yield chunk

    head_bytes, rest = take(only_bytes(), HEAD_BYTES)
    head = head_bytes.decode("utf-8-sig", "replace")
    pieces = _joined(head_bytes, rest)
    if "\r" in head and "\n" not in head:
        notes.append(Note(f"{path}: its lines end in CR alone"))
        pieces = (piece.replace(b"\r", b"\n") for piece in pieces)
        head = head.replace("\r", "\n")
    kind = kinds.text_kind(path, head, named, whole=whole)
    notes += _misnamed(path, named, kind)
    file = as_file(pieces)
    if kind in USUAL_SEPARATORS:
        found = tables.read_table(file, path, head, USUAL_SEPARATORS[kind], whole=whole)
    elif kind in READERS:
        found = READERS[kind](file, path)
    else:
        raise DataError(f"{path}: not {kinds.WORDS[named]}, and nothing else that is read; expected {ENDINGS}.")
    for each in found:
        yield from notes
        notes.clear()
        yield each
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
