"""What a row may be, and where bad ones are counted."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gladstone.errors import MAX_LISTED_PROBLEMS, DataError, listed

Row = dict[str, Any]


@dataclass(frozen=True)
class Note:
    """Something noticed about a file that is no error; `rows` is how many rows it is about, 0 the file as a whole."""

    text: str
    rows: int = 0


class FileDamage(DataError):  # noqa: N818 - read as the noun it is
    """The rest of a file cannot be read, whatever its rows are like."""


@dataclass(frozen=True)
class Reading:
    """What a user says about a file that its bytes do not: its text encoding, and which sheet of a workbook."""

    encoding: str | None = None
    sheet: str | None = None


AS_FOUND = Reading()  # nothing is said


# a value with its source (a value that is no object is refused by the door), why there is none, or a note
Found = tuple[Any, str] | DataError | Note

MAX_ROW_BYTES = 16 << 20  # the longest real row seen, a whole MedQuAD document, has 60 kB
MAX_FIELDS = 1000
MAX_NOTES = 30  # different ones


@dataclass
class Problems:
    """What was noticed while rows were read: bad rows, and notes on good ones.

    The first ten bad rows are kept and the rest counted, as are different notes, so that a bad file costs no memory.
    `unread` says where the rest of a file could not be read: how many rows that is, is unknown, so none is counted.
    """

    shown: list[str] = field(default_factory=list)
    count: int = 0
    unread: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    notes_left_off: int = 0

    def add(self, error: DataError) -> None:
        """Count a bad row."""
        self.count += 1
        if len(self.shown) < MAX_LISTED_PROBLEMS:
            self.shown.append(str(error))

    def lose(self, error: DataError) -> None:
        """Remember that the rest of a file could not be read."""
        if len(self.unread) < MAX_LISTED_PROBLEMS:
            self.unread.append(f"{error} The rest of the file is not read; how many rows it has is unknown.")

    def note(self, text: str, rows: int = 0) -> None:
        """Remember something that is no error; the rows of equal notes add up, 0 is a note on the file as a whole."""
        if text in self.notes or len(self.notes) < MAX_NOTES:
            self.notes[text] = self.notes.get(text, 0) + rows
        else:
            self.notes_left_off += 1

    def noted(self) -> list[str]:
        """The notes as lines for a user, in the order in which they came up first, each with its number of rows.

        Behind them stands where a file could not be read to its end.
        """
        lines = [f"{text} ({_rows(rows)})" if rows else text for text, rows in self.notes.items()]
        return [*lines, *self.unread, *([f"and {self.notes_left_off:,} more notes"] if self.notes_left_off else [])]

    def message(self, headline: str) -> str:
        """All of it in one message."""
        return listed(headline, [*self.unread, *self.shown][:MAX_LISTED_PROBLEMS], self.count + len(self.unread))

    def check(self, headline: str) -> None:
        """Raises DataError if there is a bad row, or a file that could not be read to its end."""
        if self.count or self.unread:
            raise DataError(self.message(headline))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def readable_fields(names: Iterable[str]) -> str:
    """The names of fields for a message: at most ten, each at most 40 characters."""
    names = list(names)
    shown = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in names[:10])
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return (shown or "no fields") + more


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number"}
    return "true or false" if isinstance(value, bool) else names.get(type(value), type(value).__name__)
