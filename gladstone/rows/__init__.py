"""Data files to rows, one by one: JSON, JSON Lines, CSV, Parquet and MedQuAD's XML, also under gzip and zstd.

A file is hostile until proven otherwise: sizes are bounded, and memory does not grow with the file.
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gladstone.errors import DataError
from gladstone.rows import medquad_xml, parquet, tables, texts
from gladstone.rows.limits import MAX_FIELDS, Found, Problems, Row, kind_of, readable_fields
from gladstone.rows.opened import COMPRESSED, open_data

__all__ = ["ENDINGS", "Problems", "Row", "read_rows", "readable_fields"]

READERS: dict[str, Callable[[BinaryIO, Path], Iterator[Found]]] = {
    ".json": texts.read_array,
    ".jsonl": texts.read_lines,
    ".csv": tables.read_commas,
    ".tsv": tables.read_tabs,
    ".xml": medquad_xml.read_pairs,
}
ENDINGS = ".json, .jsonl, .csv, .tsv, .xml (each also with .gz or .zst), .parquet, or a folder of .xml files"


def read_rows(path: Path, problems: Problems | None = None) -> Iterator[tuple[Row, str]]:
    """Yield each row of a file, or of a folder's XML files, with its source, `file:line`.

    A bad row is added to `problems`, and reading goes on where the layout allows; without `problems` the first raises.
    Raises DataError if the file is missing, empty, cut short or of another kind, or if there is no row at all.
    """
    empty = True
    for found in _found(path, problems):
        empty = False
        error = found if isinstance(found, DataError) else _flaw(*found)
        if error is None:
            yield found  # type: ignore[misc]
        elif problems is None:
            raise error
        else:
            problems.add(error)
    if empty:
        raise DataError(f"{path}: holds no rows.")


def _found(path: Path, problems: Problems | None) -> Iterator[Found]:
    """What the files hold; damage that ends a file comes last, so that the rows before it are not lost."""
    for file in _files(path):
        begun = path.is_dir()
        try:
            for found in _read_file(file):
                begun = True
                yield found
        except DataError as error:
            if problems is None or not begun:
                raise
            yield error


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.xml"))
    if not files:
        raise DataError(f"{path}: a folder without .xml files (the layout of MedQuAD). Give the data file itself.")
    return files


def _read_file(path: Path) -> Iterator[Found]:
    ending = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    if path.suffix == ".parquet":
        yield from parquet.read_table(path)
        return
    if ending not in READERS:
        raise DataError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, expected {ENDINGS}.")
    with open_data(path) as file:
        try:
            yield from READERS[ending](file, path)
        except (EOFError, zlib.error, OSError) as error:
            reason = f"is no whole {path.suffix} file" if path.suffix in COMPRESSED else "cannot be read"
            raise DataError(f"{path}: {reason}: {error}.") from None


def _flaw(row: object, source: str) -> DataError | None:
    if not isinstance(row, dict):
        return DataError(f"{source}: expected an object with named fields, found {kind_of(row)}.")
    if len(row) > MAX_FIELDS:
        return DataError(f"{source}: the row has {len(row):,} fields, more than {MAX_FIELDS:,}.")
    return None
