"""Rows of a file as items, read by the same code as for training."""

from collections import Counter
from dataclasses import dataclass, field

from bench.config import BenchConfig
from bench.results import Item, LeftOut
from gladstone.errors import DataError
from gladstone.formats import Notes, find_layout, iter_conversations
from gladstone.rows import Problems, ReadOptions

UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Items:
    """The rows to measure, out of `in_file` rows, with notes on the file and the rows that were left out."""

    items: tuple[Item, ...]
    in_file: int
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    layout: str = ""

    @property
    def asked(self) -> int:
        """Number of items that ask a question; they come first."""
        return sum(not item.is_text for item in self.items)


@dataclass
class _Read:
    problems: Problems = field(default_factory=Problems)
    notes: Notes = field(default_factory=Notes)


def read_items(config: BenchConfig) -> Items:
    """The first rows of the file as items, questions before plain texts.

    A file with questions has its plain texts skipped, unless everything is scored as plain text (--raw).

    Raises DataError for bad rows (unless they are skipped), and for fewer than two rows: an interval needs two.
    """
    read = _Read()
    path = config.data
    layout = find_layout(
        path, config.format_name, dict(config.columns) or None, ReadOptions(config.encoding, config.sheet)
    )
    rows = list(iter_conversations(path, layout, read.problems, read.notes))
    if not config.skip_bad:
        read.problems.check(f"{path}, read as {layout.name!r}, bad rows (--skip-bad leaves them out)")
    asked, texts = [row for row in rows if not row.is_text], [row for row in rows if row.is_text]
    taken = [*asked, *texts] if config.raw or not asked else asked
    if len(taken) < 2:
        raise DataError(f"{path}: holds {_rows(len(taken))}, expected at least 2, because one row gives no interval.")
    notes = [*read.problems.noted(), *read.notes.lines()]
    if len(taken) < len(rows):
        notes.append(f"skipped: {_rows(len(texts))} of plain text, which ask no question; --raw scores them too")
    items = tuple(Item(talk.source, talk.prompt, talk.answer, talk.tools) for talk in taken[: config.rows])
    return Items(items, len(taken), tuple(notes), _unreadable(read.problems), layout.name)


def _unreadable(problems: Problems) -> tuple[LeftOut, ...]:
    if not problems.count:
        return ()
    return (LeftOut(UNREADABLE, problems.count, problems.shown[0]),)


def group_by_reason(reasons: list[tuple[str, str]]) -> tuple[LeftOut, ...]:
    """Left-out rows grouped by reason, from a reason and a problem for each row."""
    counts = Counter(reason for reason, _ in reasons)
    firsts = dict(reversed(reasons))
    return tuple(LeftOut(reason, rows, firsts[reason]) for reason, rows in counts.items())


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
