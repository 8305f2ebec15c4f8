"""The types and the size limits of rows, and how messages name their fields and values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gladstone.errors import DataError
from gladstone.rows.problems import Note

MAX_ROW_BYTES = 16 << 20  # the longest real row seen, a whole MedQuAD document, has 60 kB
MAX_FIELDS = 1000
Row = dict[str, Any]
# a value with its source (`read_rows` rejects values that are not objects), the reason why there is none, or a note
RowItem = tuple[Any, str] | DataError | Note


@dataclass(frozen=True)
class ReadOptions:
    """Facts that the user supplies because the bytes do not show them: text encoding, and sheet of a workbook."""

    encoding: str | None = None
    sheet: str | None = None


DEFAULT_OPTIONS = ReadOptions()  # the user supplies nothing


def readable_fields(names: Iterable[str]) -> str:
    """Return field names for a message: at most ten, each cut to 40 characters."""
    names = list(names)
    shown = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in names[:10])
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return (shown or "no fields") + more


def kind_of(value: object) -> str:
    """Name the kind of a JSON value."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number"}
    return "true or false" if isinstance(value, bool) else names.get(type(value), type(value).__name__)
