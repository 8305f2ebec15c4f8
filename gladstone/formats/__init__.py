"""Row formats: one file each with the FIELDS it is known by and `read(row, source) -> Conversation`.

Training, proofs and benchmarks read rows through this door only: what is trained is what is measured.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gladstone.chat import Conversation
from gladstone.errors import ConfigError, DataError
from gladstone.formats import alpaca, medquad, messages, prepared, prompt, pubmedqa, qa, reasoning, sharegpt, text
from gladstone.rows import Problems, Row, read_rows, readable_fields

Reader = Callable[[Row, str], Conversation]

FORMATS: dict[str, Reader] = {
    "qa": qa.read,
    "alpaca": alpaca.read,
    "messages": messages.read,
    "sharegpt": sharegpt.read,
    "prompt": prompt.read,
    "reasoning": reasoning.read,
    "pubmedqa": pubmedqa.read,
    "pubmedqa-closed": pubmedqa.read_closed,
    "medquad": medquad.read,
    "text": text.read,
    "prepared": prepared.read,
}
KNOWN_BY: dict[str, tuple[str, ...]] = {
    "qa": qa.FIELDS,
    "alpaca": alpaca.FIELDS,
    "messages": messages.FIELDS,
    "sharegpt": sharegpt.FIELDS,
    "prompt": prompt.FIELDS,
    "reasoning": reasoning.FIELDS,
    "pubmedqa": pubmedqa.FIELDS,
    "medquad": medquad.FIELDS,
    "text": text.FIELDS,
}
AUTO = "auto"
FORMAT_NAMES = (AUTO, *FORMATS)
COLUMNS = ("question", "answer", "reasoning", "system")
SAMPLED_ROWS = 50


@dataclass(frozen=True)
class Layout:
    """How to read a file's rows; `why` tells how `auto` came to it, `columns` maps qa's fields to the file's."""

    name: str
    why: str = ""
    columns: Mapping[str, str] | None = None

    def read(self, row: Row, source: str) -> Conversation:
        """The row as a conversation. Raises DataError if it does not fit."""
        return FORMATS[self.name](row if self.columns is None else self._renamed(row, source), source)

    def _renamed(self, row: Row, source: str) -> Row:
        columns = self.columns or {}
        missing = [column for column in columns.values() if column not in row]
        if missing:
            raise DataError(f"{source}: no column {missing[0]!r} (of columns); the row has {readable_fields(row)}.")
        return {name: row[column] for name, column in columns.items()}


def find_layout(path: Path, format_name: str, columns: Mapping[str, str] | None = None) -> Layout:
    """The layout of a name; for `auto`, the one that the file's first rows fit.

    Raises ConfigError for an unknown name or columns, DataError if no layout or more than one fits.
    """
    if format_name not in FORMAT_NAMES:
        raise ConfigError(f"unknown data format {format_name!r}; known: {', '.join(FORMAT_NAMES)}.")
    if columns is not None:
        _check_columns(columns, format_name)
        return Layout("qa", "columns are given", columns)
    return recognise(path) if format_name == AUTO else Layout(format_name)


def recognise(path: Path) -> Layout:
    """The one layout whose fields most of the first rows have. Raises DataError if none or more than one fits."""
    sample = [set(row) for row, _ in islice(read_rows(path, Problems()), SAMPLED_ROWS)]
    if not sample:
        raise DataError(f"{path}: no row can be read, so that its format cannot be recognised.")
    counts = {name: sum(row.issuperset(fields) for row in sample) for name, fields in KNOWN_BY.items()}
    fitting = [name for name, count in counts.items() if count * 2 >= len(sample)]
    # a row that has more than text is no plain text: Alpaca's rows hold themselves once more under that name
    fitting = [name for name in fitting if name != "text"] or fitting
    if len(fitting) == 1:
        count, fields = counts[fitting[0]], ", ".join(KNOWN_BY[fitting[0]])
        of_all = "" if count == len(sample) else f"{count} of "
        return Layout(fitting[0], f"{of_all}the first {len(sample)} rows have {fields}")
    if fitting:
        raise DataError(f"{path}: fits the formats {' and '.join(fitting)}. Say which with --format.")
    common = sorted(set.intersection(*sample))
    raise DataError(
        f"{path}: fits no known format; its first rows all have {readable_fields(common)}. Name the fields under "
        "columns: in a recipe's source (--column in `finetune data check`), or give a --format."
    )


def iter_conversations(path: Path, layout: Layout, problems: Problems) -> Iterator[Conversation]:
    """The conversations of a file one by one; bad rows go to `problems`, and so does damage to the file itself."""
    for row, source in read_rows(path, problems):
        try:
            yield layout.read(row, source)
        except DataError as error:
            problems.add(error)


def checked_conversations(path: Path, layout: Layout, first_rows: int | None = None) -> Iterator[Conversation]:
    """The conversations of a file, or its first ones, one by one.

    Raises DataError behind the last one, naming up to ten bad rows and counting the rest.
    """
    problems = Problems()
    yield from islice(iter_conversations(path, layout, problems), first_rows)
    problems.check(f"{path}, read as {layout.name!r}")


def read_conversations(path: Path, format_name: str) -> list[Conversation]:
    """Read a data file whole. Raises DataError naming up to ten bad rows and counting the rest."""
    return list(checked_conversations(path, find_layout(path, format_name)))


def _check_columns(columns: Mapping[str, str], format_name: str) -> None:
    if format_name not in (AUTO, "qa"):
        raise ConfigError(f"columns describe a layout of their own; leave out format: {format_name}.")
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"columns: unknown name {unknown[0]!r}; known: {', '.join(COLUMNS)}.")
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing:
        raise ConfigError(f"columns: {missing[0]!r} is missing; question and answer must be named.")
