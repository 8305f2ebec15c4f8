"""What a row may be, and where bad ones are counted."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gladstone.errors import MAX_LISTED_PROBLEMS, DataError, listed

Row = dict[str, Any]
# a value with its source; a value that is no object is told of by the door; or why there is none
Found = tuple[Any, str] | DataError

MAX_ROW_BYTES = 16 << 20  # the longest real row seen, a whole MedQuAD document, has 60 kB
MAX_FIELDS = 1000
MAX_NOTES = 30  # different ones


@dataclass
class Problems:
    """What was noticed while rows were read: bad rows, and notes on good ones.

    The first ten bad rows are kept and the rest counted, as are different notes, so that a bad file costs no memory.
    """

    shown: list[str] = field(default_factory=list)
    count: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    notes_left_off: int = 0

    def add(self, error: DataError) -> None:
        """Count a bad row."""
        self.count += 1
        if len(self.shown) < MAX_LISTED_PROBLEMS:
            self.shown.append(str(error))

    def note(self, text: str, rows: int = 0) -> None:
        """Remember something that is no error; the rows of equal notes add up, 0 is a note on the file as a whole."""
        if text in self.notes or len(self.notes) < MAX_NOTES:
            self.notes[text] = self.notes.get(text, 0) + rows
        else:
            self.notes_left_off += 1

    def noted(self) -> list[str]:
        """The notes as lines for a user, in the order in which they came up first, each with its number of rows."""
        lines = [f"{text} ({_rows(rows)})" if rows else text for text, rows in self.notes.items()]
        return [*lines, *([f"and {self.notes_left_off:,} more notes"] if self.notes_left_off else [])]

    def message(self, headline: str) -> str:
        """All of it in one message."""
        return listed(headline, self.shown, self.count)

    def check(self, headline: str) -> None:
        """Raises DataError if there is any."""
        if self.count:
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
