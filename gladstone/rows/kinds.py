"""Detects what a file is from its first bytes or characters, whatever its name says."""

import json
import re
from pathlib import Path

from gladstone.errors import DataError
from gladstone.rows.separators import find_separator
from gladstone.signatures import FileKind, recognise

JSON, LINES, VALUES, TABLE, TABS, XML, PARQUET, SHEET = (
    "json", "lines", "values", "table", "tabs", "xml", "parquet", "sheet")  # fmt: skip
KINDS = {
    ".json": JSON, ".jsonl": LINES, ".ndjson": LINES, ".csv": TABLE, ".tsv": TABS, ".tab": TABS,
    ".xml": XML, ".parquet": PARQUET, ".xlsx": SHEET, ".xlsm": SHEET,
}  # fmt: skip
KIND_NAMES = {
    JSON: "one JSON array or object",
    LINES: "JSON Lines",
    VALUES: "JSON objects over several lines each",
    TABLE: "a table with separators (CSV)",
    TABS: "a table with separators (CSV)",
    XML: "XML",
    PARQUET: "Parquet",
    SHEET: "an Excel workbook (.xlsx)",
}
UNPACK, EXPORT = "Unpack it first.", "Save it as .xlsx or as CSV."
COPY_TEXT = "Copy its text into a supported format, with one row for each question and answer."
GIVE_ROWS, WRITE_LINES = "Give the file with the rows.", "Write the rows as JSON Lines."
WRITE_ARROW = "Write it as Parquet or JSON Lines (in datasets: to_parquet, to_json)."
# kinds of files that hold no rows, or not in a form that is read, and what a user can do
ADVICE = {
    FileKind.OFFICE: EXPORT, FileKind.PDF: COPY_TEXT, FileKind.RTF: COPY_TEXT, FileKind.BZIP2: UNPACK,
    FileKind.XZ: UNPACK, FileKind.SEVEN_ZIP: UNPACK, FileKind.RAR: UNPACK, FileKind.SQLITE: "Export the table as CSV.",
    FileKind.ARROW: WRITE_ARROW, FileKind.ARROW_STREAM: WRITE_ARROW,
    FileKind.PICKLE: f"It can run code when it is read. {WRITE_LINES}",
    FileKind.GGUF: GIVE_ROWS, FileKind.PICTURE: GIVE_ROWS, FileKind.GZIP: UNPACK, FileKind.ZSTD: UNPACK,
}  # fmt: skip
_SPACE = "\ufeff \t\r\n"
_PAGE = re.compile(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_XML = re.compile(r"<(\?xml|Document|!DOCTYPE)\b")
_OBJECT_OF_ROWS = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')


def binary_kind(path: Path, start: bytes) -> str:
    """Return PARQUET, SHEET, or '' for what may be text. Raises DataError for a kind of file that holds no rows."""
    kind = recognise(start)
    if kind is FileKind.PARQUET:
        return PARQUET
    if kind is FileKind.ZIP:
        return _archive_kind(path)
    if kind in ADVICE:
        what = "compressed twice" if kind in (FileKind.GZIP, FileKind.ZSTD) else kind  # once is unpacked already
        raise DataError(f"{path}: is {what}, which is not supported. {ADVICE[kind]}")
    return ""


def _archive_kind(path: Path) -> str:
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            names = set(archive.namelist())
    except (BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: a damaged or truncated ZIP archive or workbook: {error}.") from None
    if any(name.lower() == "xl/workbook.xml" for name in names):
        return SHEET
    if "xl/workbook.bin" in names:
        raise DataError(f"{path}: is a binary workbook (.xlsb), which is not supported. {EXPORT}")
    if "word/document.xml" in names:
        raise DataError(f"{path}: is a Word document, which is not supported. {COPY_TEXT}")
    if "content.xml" in names and "mimetype" in names:
        raise DataError(f"{path}: is an OpenDocument file (.ods, .odt), which is not supported. {EXPORT}")
    raise DataError(f"{path}: is a ZIP archive, which is not supported. {UNPACK}")


def text_kind(path: Path, head: str, named: str, *, whole: bool) -> str:
    """Return the kind of a text from its first characters, or `named` if they are inconclusive.

    `whole`: `head` is all of the text. Raises DataError for an HTML page or a Git LFS pointer in place of the file.
    """
    start = head.lstrip(_SPACE)
    if start.startswith("version https://git-lfs.github.com"):
        raise DataError(f"{path}: is a Git LFS pointer, not the file itself. Fetch the file with `git lfs pull`.")
    if _PAGE.match(start):
        raise DataError(f"{path}: is an HTML page, perhaps an error or login page. Download the file itself again.")
    if start.startswith("{"):
        return _object_kind(start, named, whole=whole)
    if start.startswith("["):
        return _array_kind(start, named)
    if named in (TABLE, TABS):
        return XML if start.startswith("<?xml") else named
    if named != XML and _XML.match(start):
        return XML
    separator = find_separator(head, ",", whole=whole) if start else None
    return TABLE if separator and separator.certain and named != XML else named


def _object_kind(start: str, named: str, *, whole: bool) -> str:
    first_line, _, others = start.partition("\n")
    try:
        value, end = json.JSONDecoder().raw_decode(start)
    except RecursionError:
        return named
    except ValueError:
        return _broken_kind(start, first_line, others, named)
    rest = start[end:].lstrip()
    if rest and not rest.startswith("{"):
        return named if named in (JSON, LINES) else LINES
    if not rest and (named == JSON or not whole):
        return named if named in (JSON, LINES) else LINES
    if "\n" not in start[:end]:
        return LINES
    return JSON if not rest and value and all(isinstance(row, dict) for row in value.values()) else VALUES


def _broken_kind(start: str, first_line: str, others: str, named: str) -> str:
    """The kind of a text whose first object is broken, or longer than the part read so far."""
    second = next((line for line in others.split("\n") if line.strip()), "")
    if named in (TABLE, TABS, XML):
        return named
    if _is_json(second):
        return LINES
    return JSON if _OBJECT_OF_ROWS.match(start) and not _is_json(first_line) and len(first_line) < 1000 else named


def _array_kind(start: str, named: str) -> str:
    if named in (TABLE, TABS, XML) and not start[1:].lstrip().startswith(("{", "]")):
        return named
    first_line, _, others = start.partition("\n")
    return LINES if named == LINES and others.strip() and _is_json(first_line) else JSON


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
