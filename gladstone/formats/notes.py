"""Notes on a file beside its conversations: unused fields, values read as text, rows left out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gladstone.formats.rendered import advice_for

MAX_NAMES, MAX_SHOWN, MAX_NAME_CHARS = 200, 12, 40


class LeftOutError(Exception):
    """A row that is marked not to be trained on; the message is the reason."""


@dataclass
class Notes:
    """Counts over the rows of a file.

    At most 200 field names are kept, so that untrusted rows cannot exhaust memory.
    """

    unused: Counter[str] = field(default_factory=Counter)  # rows by field
    as_text: Counter[tuple[str, str]] = field(default_factory=Counter)  # values by field and kind
    left_out: Counter[str] = field(default_factory=Counter)  # rows by reason
    rendered: Counter[str] = field(default_factory=Counter)  # rows by the chat template that a text is rendered in
    more_unused: int = 0  # rows with unused fields beyond the names kept

    def add(self, unused: Iterable[str], as_text: Iterable[tuple[str, str]]) -> None:
        """Count one row: its unused fields, and each value that was read as text."""
        more = False
        for name in dict.fromkeys(map(_readable, unused)):  # in the order of the row
            if name in self.unused or len(self.unused) < MAX_NAMES:
                self.unused[name] += 1
            else:
                more = True
        self.more_unused += more
        self.as_text.update(as_text)

    def leave_out(self, source: str, reason: str) -> None:
        """Count a row that is marked not to be trained on."""
        self.left_out[reason] += 1

    def lines(self) -> list[str]:
        """Return each kind of note as one line; an empty list if there are none."""
        lines = [f"{count:,} values of {name!r} are {kind}, read as text" for (name, kind), count in self._values()]
        if self.unused:
            shown = [f"{name} ({_rows(count)})" for name, count in self.unused.most_common(MAX_SHOWN)]
            more = len(self.unused) - len(shown)
            lines.append("not used: " + ", ".join(shown) + self._more(more))
        for kind, count in self.rendered.items():
            lines.append(f"{_rows(count)} with a text already rendered in a chat template ({kind}). {advice_for(kind)}")
        lines += [f"left out: {_rows(count)}, {reason}" for reason, count in self.left_out.items()]
        return lines

    def _values(self) -> list[tuple[tuple[str, str], int]]:
        return self.as_text.most_common(MAX_SHOWN)

    def _more(self, more: int) -> str:
        if self.more_unused:
            return f" and more than {more:,} others"
        return f" and {more:,} more" if more else ""


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _readable(name: str) -> str:
    short = name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"
    plain = short.isprintable() and " " not in short and "," not in short and short
    return short if plain else repr(short)
