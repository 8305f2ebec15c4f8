"""Reads Excel workbooks: the first sheet that looks like a table, its first row as header. Imports openpyxl.

Row numbers in sources are those of the sheet. A formula gives the value that the spreadsheet program last stored.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from gladstone.errors import DataError
from gladstone.rows.compression import MAX_RATIO, MIN_SUSPECT_BYTES
from gladstone.rows.csv_tables import checked_header
from gladstone.rows.json_lines import MAX_BLANK_LINES
from gladstone.rows.problems import Note
from gladstone.rows.row_types import MAX_FIELDS, MAX_ROW_BYTES, RowItem, readable_fields

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

MAX_SHARED_BYTES = 512 << 20  # the shared strings, which are held in memory
MAX_HEADER_ROW = 20  # a title and remarks may precede the header
MAX_MERGED = 10  # merged cells that are remembered
_MERGED = re.compile(rb'<mergeCell [^>]*ref="([A-Z0-9:]{3,20})"')
_HIDDEN = re.compile(rb'<row [^>]*hidden="(?:1|true)"')
_FORMULA = re.compile(rb"<f[ >/]")


def read_sheet(path: Path, wanted: str | None = None) -> Iterator[RowItem]:
    """Yield the rows of the sheet `wanted`, or of the first visible sheet whose header has at least two names."""
    from openpyxl import load_workbook

    _check_sizes(path)
    with path.open("rb") as file:  # as a file object: openpyxl refuses paths with other suffixes
        try:
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
        except Exception as error:  # noqa: BLE001 - a damaged file makes openpyxl raise almost anything
            raise _damaged(path, error) from None
        try:
            yield from _Sheet(path, book, wanted).rows()
        finally:
            book.close()


def _damaged(path: Path, error: Exception) -> DataError:
    reason = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
    return DataError(f"{path}: not an Excel workbook (.xlsx), or damaged: {reason or type(error).__name__}.")


def _check_sizes(path: Path) -> None:
    """Raise DataError for a decompression bomb; zipfile reads no more than the declared size."""
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
    except (BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    limit = max(MIN_SUSPECT_BYTES, MAX_RATIO * path.stat().st_size)
    shared = sum(part.file_size for part in parts if part.filename.lower().endswith("sharedstrings.xml"))
    if sum(part.file_size for part in parts) > limit:
        raise DataError(f"{path}: unpacks to more than {MAX_RATIO} times its size; refused.")
    if shared > MAX_SHARED_BYTES:
        raise DataError(f"{path}: its strings take more than {MAX_SHARED_BYTES >> 20} MiB. Save the sheet as CSV.")


class _Sheet:
    """One sheet of a workbook."""

    def __init__(self, path: Path, book: "Workbook", wanted: str | None) -> None:
        self._path, self._book = path, book
        self._sheet, self._header_row, self._names = self._choose(wanted)
        self._parts = self._look_through()

    def rows(self) -> Iterator[RowItem]:
        yield from self._notes()
        header = checked_header(self._names, f"{self._path}:{self._header_row}")
        formulas = self._formulas() if self._parts["formulas"] else None
        blank, width = 0, len(header)
        for number, cells in self._cells(self._sheet, self._header_row + 1, width + 1):
            asked = next(formulas, (0, ()))[1] if formulas else ()
            values = [cell.value for cell in cells]
            if not any(value not in (None, "") for value in values) and not any(cell.value for cell in asked):
                blank += 1
                if blank > MAX_BLANK_LINES:
                    raise DataError(
                        f"{self._path}:{number}: {MAX_BLANK_LINES:,} blank rows before it; reading stopped."
                    )
                continue
            blank = 0
            source = f"{self._path}:{number}"
            yield self._flaw(source, cells, asked) or (self._row(header, values), source)

    def _row(self, header: list[str], values: list[Any]) -> dict[str, Any]:
        values = [_plain(value) for value in values[: len(header)]]
        return dict(zip(header, values + [None] * (len(header) - len(values)), strict=True))

    def _flaw(self, source: str, cells: tuple[Any, ...], formulas: tuple[Any, ...]) -> DataError | None:
        width = len(self._names)
        for cell in cells[:width]:
            if getattr(cell, "data_type", "") == "e":
                return DataError(f"{source}: cell {cell.coordinate} contains the error {cell.value}.")
        for cell, formula in zip(cells[:width], formulas, strict=False):
            if cell.value is None and getattr(formula, "data_type", "") == "f":
                return DataError(
                    f"{source}: cell {formula.coordinate} is a formula without a stored value. Open and save the file "
                    "in a spreadsheet program, or paste the values in place of the formulas."
                )
        if any(cell.value not in (None, "") for cell in cells[width:]):
            return DataError(f"{source}: more cells than the {width} that the header names.")
        if sum(len(cell.value) for cell in cells if isinstance(cell.value, str)) > MAX_ROW_BYTES:
            return DataError(f"{source}: the row is longer than {MAX_ROW_BYTES >> 20} MiB.")
        return None

    def _choose(self, wanted: str | None) -> tuple[Any, int, list[str]]:
        sheets = self._book.worksheets
        if wanted is not None:
            sheets = [sheet for sheet in sheets if sheet.title == wanted]
            if not sheets:
                names = readable_fields(sheet.title for sheet in self._book.worksheets)
                raise DataError(f"{self._path}: no sheet {wanted!r}; there are {names}.")
        for sheet in sheets:
            if wanted is None and sheet.sheet_state != "visible":
                continue
            for number, cells in self._cells(sheet, 1, MAX_FIELDS + 1, MAX_HEADER_ROW):
                header = ["" if cell.value is None else str(cell.value).strip() for cell in cells]
                while header and not header[-1]:
                    header.pop()
                if sum(bool(name) for name in header) >= 2:
                    return sheet, number, header
        raise DataError(
            f"{self._path}: no visible sheet has a header of two names or more among its first {MAX_HEADER_ROW} rows."
        )

    def _cells(
        self, sheet: Any, begin: int, width: int, end: int | None = None
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        sheet.reset_dimensions()  # the dimensions stored in a file may be wrong
        rows = enumerate(sheet.iter_rows(min_row=begin, max_row=end, max_col=min(width, MAX_FIELDS + 1)), begin)
        try:
            yield from rows
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise _damaged(self._path, error) from None

    def _formulas(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the same cells with formulas in place of values."""
        from openpyxl import load_workbook

        with self._path.open("rb") as file:
            book = load_workbook(file, read_only=True, data_only=False, keep_links=False)
            try:
                yield from self._cells(book[self._sheet.title], self._header_row + 1, len(self._names) + 1)
            finally:
                book.close()

    def _look_through(self) -> dict[str, Any]:
        """Find what openpyxl does not report in read-only mode: formulas, merged cells and hidden rows."""
        features: dict[str, Any] = {"formulas": False, "merged": [], "hidden": 0}
        try:
            with ZipFile(self._path) as archive, archive.open(self._sheet._worksheet_path) as part:
                tail = b""
                while data := part.read(1 << 20):
                    cut = data.rfind(b"<")
                    text, tail = tail + data[:cut], data[cut:]
                    features["formulas"] = features["formulas"] or bool(_FORMULA.search(text))
                    room = MAX_MERGED - len(features["merged"])
                    features["merged"] += [ref.decode() for ref in _MERGED.findall(text)][:room]
                    features["hidden"] += len(_HIDDEN.findall(text))
        except (BadZipFile, OSError, KeyError) as error:
            raise _damaged(self._path, error) from None
        return features

    def _notes(self) -> Iterator[Note]:
        titles = self._book.sheetnames
        prefix = f"{self._path}: "
        if len(titles) > 1:
            others = [title for title in titles if title != self._sheet.title]
            yield Note(f"{prefix}read sheet {self._sheet.title!r}; not read: {readable_fields(others)}")
        if self._header_row > 1:
            yield Note(f"{prefix}the header is row {self._header_row}; the rows above it are not read")
        if self._parts["merged"]:
            cells = ", ".join(self._parts["merged"][:5])
            yield Note(f"{prefix}merged cells ({cells}): the first cell of each has the value, the others are empty")
        if self._parts["hidden"]:
            yield Note(f"{prefix}hidden rows are read like visible ones", self._parts["hidden"])


def _plain(value: Any) -> Any:
    """Convert a cell's value to JSON: dates as ISO 8601, strings with Excel's _x000D_ escapes decoded."""
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and "_x" in value:
        from openpyxl.utils.escape import unescape

        return unescape(value)
    return value
