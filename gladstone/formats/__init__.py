"""Row formats: one module each, with the FIELDS that identify it and `read(row) -> Conversation`.

Training, proofs and benchmarks read rows through this package only, so that what is trained is what is measured.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gladstone.chat.messages import Conversation
from gladstone.errors import ConfigError, DataError
from gladstone.formats import (
    alpaca,
    dolly,
    gemini,
    medquad,
    messages,
    pair,
    preference,
    prepared,
    prompt,
    pubmedqa,
    qa,
    reasoning,
    rendered,
    sharegpt,
    text,
)
from gladstone.formats.fields import Fields
from gladstone.formats.notes import LeftOutError, Notes
from gladstone.formats.recognition import IDENTIFYING_FIELDS, SAMPLED_ROWS
from gladstone.formats.recognition import recognise as recognised
from gladstone.formats.unsupported import check_supported
from gladstone.rows import DEFAULT_OPTIONS, Problems, ReadOptions, Row, read_rows, readable_fields

__all__ = ["IDENTIFYING_FIELDS", "SAMPLED_ROWS", "LeftOutError", "Notes"]

Reader = Callable[[Fields], Conversation]

FORMATS: dict[str, Reader] = {
    "qa": qa.read,
    "alpaca": alpaca.read,
    "messages": messages.read,
    "sharegpt": sharegpt.read,
    "prompt": prompt.read,
    "dolly": dolly.read,
    "pair": pair.read,
    "gemini": gemini.read,
    "preference": preference.read_chosen,
    "kto": preference.read_good,
    "reasoning": reasoning.read,
    "pubmedqa": pubmedqa.read,
    "pubmedqa-closed": pubmedqa.read_closed,
    "medquad": medquad.read,
    "text": text.read,
    "rendered": rendered.read,
    "prepared": prepared.read,
}
AUTO = "auto"
FORMAT_NAMES = (AUTO, *FORMATS)
COLUMNS = ("question", "answer", "reasoning", "system", "context")


@dataclass(frozen=True)
class Layout:
    """How to read the rows of a file.

    `why` explains the choice of `auto`; `columns` maps qa's fields to the file's columns.
    """

    name: str
    why: str = ""
    columns: Mapping[str, str] | None = None
    options: ReadOptions = DEFAULT_OPTIONS

    def read(self, row: Row, source: str, notes: Notes | None = None) -> Conversation:
        """Read a row as a conversation.

        Raises DataError if it does not fit, LeftOutError if it asks not to be trained on.

        `notes` counts unused fields, values read as text, and rendered texts.
        """
        fields = Fields(row, source, self.columns and dict(self.columns), exact=self.name == "prepared")
        if self.columns is not None:
            self._check_columns(row, source)
        elif self.name != "prepared":
            check_supported(fields, self.name)
        conversation = FORMATS[self.name](fields)
        if notes is not None:
            notes.add(fields.unused(), fields.as_text)
            if self.name not in ("rendered", "prepared") and (kind := rendered.template_of(conversation)):
                notes.rendered[kind] += 1
        return conversation

    def _check_columns(self, row: Row, source: str) -> None:
        missing = [column for column in (self.columns or {}).values() if column not in row]
        if missing:
            raise DataError(f"{source}: no column {missing[0]!r} (of columns); the row has {readable_fields(row)}.")


def find_layout(
    path: Path,
    format_name: str,
    columns: Mapping[str, str] | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Layout:
    """Return the layout of that name or, for `auto`, the one that the first rows fit.

    `options`: what the user specified.

    Raises ConfigError for an unknown name or columns, DataError if no layout or several layouts fit.
    """
    if format_name not in FORMAT_NAMES:
        raise ConfigError(f"unknown data format {format_name!r}; known: {', '.join(FORMAT_NAMES)}.")
    if columns is not None:
        _check_columns(columns, format_name)
        return Layout("qa", "columns are given", columns, options)
    name, why = recognised(path, options) if format_name == AUTO else (format_name, "")
    return Layout(name, why, options=options)


def recognise(path: Path) -> Layout:
    """Return the one layout whose fields most of the first rows have. Raises DataError if none fits, or several do."""
    return Layout(*recognised(path))


def iter_conversations(
    path: Path, layout: Layout, problems: Problems, notes: Notes | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of a file; bad rows and damage to the file go to `problems`.

    `notes` counts unused fields, and rows that ask not to be trained on.
    """
    notes = Notes() if notes is None else notes
    for row, source in read_rows(path, problems, layout.options):
        try:
            yield layout.read(row, source, notes)
        except DataError as error:
            problems.add(error)
        except LeftOutError as error:
            notes.leave_out(source, str(error))


def checked_conversations(path: Path, layout: Layout, first_rows: int | None = None) -> Iterator[Conversation]:
    """Yield the conversations of a file, or the first `first_rows` of them.

    Raises DataError after the last one if any row is bad: it lists up to ten and counts the rest.
    """
    problems = Problems()
    yield from islice(iter_conversations(path, layout, problems), first_rows)
    problems.check(f"{path}, read as {layout.name!r}")


def read_conversations(path: Path, format_name: str) -> list[Conversation]:
    """Read a whole data file. Raises DataError that lists up to ten bad rows and counts the rest."""
    return list(checked_conversations(path, find_layout(path, format_name)))


def _check_columns(columns: Mapping[str, str], format_name: str) -> None:
    if format_name not in (AUTO, "qa"):
        raise ConfigError(f"columns describe their own layout; leave out format: {format_name}.")
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"columns: unknown name {unknown[0]!r}; known: {', '.join(COLUMNS)}.")
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing:
        raise ConfigError(f"columns: {missing[0]!r} is missing; name both question and answer.")
