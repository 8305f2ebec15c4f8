"""Collects what is noticed while rows are read: bad rows, damaged files, and notes."""

from dataclasses import dataclass, field

from gladstone.errors import MAX_LISTED_PROBLEMS, DataError, listed

MAX_NOTES = 30  # distinct texts


@dataclass(frozen=True)
class Note:
    """A remark about a file that is not an error; `rows` counts the rows concerned, 0 if it concerns the whole file."""

    text: str
    rows: int = 0


class FileDamage(DataError):  # noqa: N818 - read as the noun it is
    """The rest of a file cannot be read, whatever its rows are like."""


@dataclass
class Problems:
    """Collects bad rows and notes on good rows while a file is read.

    Only the first ten bad rows and the first distinct notes are kept; the rest are counted, so that a bad file costs no
    memory. `unread` reports files that could not be read to their end: how many rows they still hold is unknown, so
    none are counted.
    """

    shown: list[str] = field(default_factory=list)
    count: int = 0
    unread: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    notes_left_off: int = 0

    def add(self, error: DataError) -> None:
        """Count a bad row, and keep its error if it is among the first."""
        self.count += 1
        if len(self.shown) < MAX_LISTED_PROBLEMS:
            self.shown.append(str(error))

    def lose(self, error: DataError) -> None:
        """Record that the rest of a file could not be read."""
        if len(self.unread) < MAX_LISTED_PROBLEMS:
            self.unread.append(f"{error} The rest of the file is not read; the number of rows in it is unknown.")

    def note(self, text: str, rows: int = 0) -> None:
        """Record a note; the row counts of equal notes add up, and 0 rows means the file as a whole."""
        if text in self.notes or len(self.notes) < MAX_NOTES:
            self.notes[text] = self.notes.get(text, 0) + rows
        else:
            self.notes_left_off += 1

    def noted(self) -> list[str]:
        """Return the notes as lines for the user, in the order of first occurrence, each with its number of rows.

        Files that could not be read to their end follow.
        """
        lines = [f"{text} ({_rows(rows)})" if rows else text for text, rows in self.notes.items()]
        return [*lines, *self.unread, *([f"and {self.notes_left_off:,} more notes"] if self.notes_left_off else [])]

    def message(self, headline: str) -> str:
        """Return bad rows and unread files as one message."""
        return listed(headline, [*self.unread, *self.shown][:MAX_LISTED_PROBLEMS], self.count + len(self.unread))

    def check(self, headline: str) -> None:
        """Raise DataError if there is a bad row, or a file that could not be read to its end."""
        if self.count or self.unread:
            raise DataError(self.message(headline))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
