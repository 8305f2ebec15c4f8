"""Turns sources into three disjoint sets of clean rows, and records why every other row is left out.

Memory grows by some 200 bytes per row, whatever the length of the rows.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from finetune.config.data import HELD, DataSection, Source
from finetune.data.division import SETS, Division, divide, explain_empty, repeat_by_weight
from finetune.data.duplicates.conflicts import excerpt, write_conflicts
from finetune.data.duplicates.duplicates import Duplicates
from finetune.data.duplicates.groups import Groups
from finetune.data.intake import Intake
from finetune.data.leaks.leaks import LeakIndex, least_score
from finetune.data.records import recording
from finetune.data.set_files import set_file_layouts
from finetune.data.sources import source_file, source_layout
from finetune.data.spool import Spool
from finetune.data.summary import CHANGED, CONFLICTS, DROPPED, PERSONAL, SUMMARY, Summary, describe
from finetune.tokens.refusals import RowCheck
from gladstone.artifacts import check_writable, remove_partials, write_json, write_rows
from gladstone.chat.messages import Conversation
from gladstone.commands.progress import Progress, step
from gladstone.errors import DataError
from gladstone.formats import Layout, Notes, iter_conversations, prepared
from gladstone.rows import Problems, read_rows
from gladstone.run_folder import set_path

__all__ = ["CHANGED", "DROPPED", "PERSONAL", "SUMMARY", "Summary", "describe", "has_set", "prepare", "read_set"]

HELD_OUT_FILES = "held-out files"


def prepare(
    section: DataSection, folder: Path, progress: Progress, base_check: Callable[[], RowCheck] | None = None
) -> Summary:
    """Write train.jsonl, validation.jsonl, test.jsonl, data.json, dropped.jsonl and changed.jsonl into `folder`.

    `base_check` returns the check that the base makes of each row; it is called once the rows are read. None: no check.
    A set that the section leaves empty gets no file. Raises ConfigError for an invalid section, and DataError for bad
    rows (unless `skip_bad`) and for rows that cannot be divided; the records of rows left out or changed so far are
    written even then.
    """
    layouts = [source_layout(source) for source in section.sources]
    set_layouts = set_file_layouts(section)
    check_writable(folder)
    remove_partials(folder)
    summary = Summary()
    hide = section.cleaning.privacy in ("mask", "drop")
    with recording(folder, summary, hide=hide) as records, ExitStack() as stack:
        intake = Intake(section, folder, stack, records)
        with step(progress, "Reading and cleaning the rows"):
            intake.read(list(zip(section.sources, layouts, strict=True)), progress)
            for name, layout in set_layouts.items():
                intake.read_set_file(name, section.own_files[name], layout, progress)
            intake.find_boilerplate()
            progress.update(None, f"{len(intake.rows):,} of {summary.read:,} rows kept")
        if base_check is not None and len(intake.rows):
            check = base_check()
            with step(progress, "Checking the rows against the base"):
                progress.update(None, f"{intake.leave_out_refused(check):,} left out")
        selection = _Selection(intake)
        with step(progress, "Looking for duplicates"):
            kept = selection.without_duplicates()
            progress.update(None, f"{len(intake.rows) - len(kept):,} left out")
        for name, rows in selection.held_out():
            with step(progress, f"Looking for rows that the {name} contain{'s' * (name != HELD_OUT_FILES)}"):
                before = len(kept)
                kept = selection.without_leaks(kept, name, rows)
                progress.update(None, f"{before - len(kept):,} left out")
        with step(progress, "Dividing and writing the rows"):
            selection.write(selection.divide(selection.draw(kept)))
    write_json(folder / SUMMARY, vars(summary))
    return summary


def read_set(folder: Path, name: str) -> Iterator[Conversation]:
    """Yield the rows of a prepared set, each with its original source; none if the set does not exist."""
    if name in HELD and not has_set(folder, name):
        return
    for row, source in read_rows(set_path(folder, name)):
        yield Layout("prepared").read(row, source)


def has_set(folder: Path, name: str) -> bool:
    """True if the set was prepared; an empty validation or test set has no file."""
    return set_path(folder, name).is_file()


class _Selection:
    """The rows that are left after cleaning: duplicates and leaks are left out, the rest is divided into sets."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._section, self._folder = intake, intake.section, intake.folder
        self._rows, self._summary = intake.rows, intake.summary
        self._leaked: set[int] = set()  # rows of the validation set's own file that are in the test set's file too

    def without_duplicates(self) -> list[int]:
        """Return the rows that repeat no other, or all rows if duplicates are kept; their groups are set."""
        if not len(self._rows):
            raise DataError(f"no row is left of {self._summary.read:,}: {self._summary.reasons()}.")
        self.duplicates = Duplicates(self._rows, self._section.duplicates.similarity)
        self.duplicates.find()
        self._summary.conflicts, self._summary.conflict_examples = write_conflicts(
            self.duplicates, self._folder / CONFLICTS
        )
        if self._section.duplicates.keep:
            self._summary.kept_duplicates = len(self.duplicates.partners)
            return list(range(len(self._rows)))
        for number, (partner, similarity) in sorted(self.duplicates.partners.items()):
            row, other = self._rows[number], self._rows[partner]
            copy = row.messages == other.messages
            reason = "exact copy" if copy else "near duplicate"
            detail = f"of {other.source}" + ("" if copy else f", similarity {similarity:.2f}")
            self._intake.drop(number, reason, detail)
        return [row for row in range(len(self._rows)) if row not in self.duplicates.partners]

    def held_out(self) -> Iterator[tuple[str, Iterable[Conversation]]]:
        """Yield the files whose rows must not be trained on, by name: first benchmarks, then the sets' own files."""
        sources = self._section.held_out
        if sources:
            yield HELD_OUT_FILES, chain.from_iterable(map(self._read_benchmark, sources))
        # test first: a validation row that is also a test row would tune the training on the test
        for name in reversed(HELD):
            if name in self._intake.set_rows:
                yield f"{name} file", self._intake.set_rows[name]

    def _read_benchmark(self, source: Source) -> Iterator[Conversation]:
        """Yield the rows of a benchmark file and record its notes.

        Raises DataError after the last row if any are bad.
        """
        problems, notes = Problems(), Notes()
        path = source_file(source)
        yield from islice(iter_conversations(path, source_layout(source), problems, notes), source.first_rows)
        problems.check(str(path))
        self._summary.notes += [f"{source.path}: {note}" for note in (*problems.noted(), *notes.lines())]

    def without_leaks(self, kept: list[int], name: str, rows: Iterable[Conversation]) -> list[int]:
        """Return the rows that a held-out file does not contain. Raises DataError if none is left."""
        reason = "leak" if name == HELD_OUT_FILES else f"leak into the {name}"
        index = LeakIndex(rows, least_score(self._section.duplicates.similarity))
        if name == "test file" and "validation" in self._intake.set_rows:
            own = self._intake.set_rows["validation"]
            self._leaked = self._leave_out_leaks(index, own, range(len(own)), reason)
            if len(self._leaked) == len(own):
                raise DataError(
                    "data.validation: data.test contains all of its rows. Name other rows, or set one of them to 0."
                )
        leaks = self._leave_out_leaks(index, self._rows, kept, reason)
        if len(leaks) == len(kept):
            raise DataError(f"no row is left to train on of {self._summary.read:,}: {self._summary.reasons()}.")
        return [row for row in kept if row not in leaks]

    def _leave_out_leaks(self, index: LeakIndex, spool: Spool, rows: Sequence[int], reason: str) -> set[int]:
        """Leave out the rows that the index contains."""
        leaks = {rows[position]: leak for position, leak in index.leaks(spool[row] for row in rows)}
        for row, leak in leaks.items():
            difference = f": {leak.difference}" if leak.difference else ""
            self._intake.drop(
                row, reason, f"{leak.kind} as {leak.test}, {leak.similarity:.2f}{difference}", spool=spool
            )
        return set(leaks)

    def draw(self, kept: list[int]) -> list[int]:
        """Draw at most `max_rows` of the rows."""
        limit = self._section.max_rows
        if limit is None or limit >= len(kept):
            return kept
        drawn = set(random.Random(self._section.seed).sample(kept, limit))  # noqa: S311 - a draw, not a secret
        for row in kept:
            if row not in drawn:
                self._intake.drop(row, "not drawn", f"max_rows is {limit:,}")
        return sorted(drawn)

    def divide(self, kept: list[int]) -> Division:
        """Divide the rows into sets; rows that share an input, answer or context stay together.

        Raises DataError if one is empty.
        """
        groups = self.duplicates.split_groups() if self._section.duplicates.together else Groups(len(self._rows))
        sizes = Counter(groups.root(row) for row in kept)
        shared = [size for size in sizes.values() if size > 1]
        self._summary.groups, self._summary.largest_group = len(shared), max(shared, default=0)
        division = divide(kept, groups, self._section, lambda row: int(self.duplicates.questions[row]))
        sets = division.sets()
        empty = [name for name in SETS if not sets[name] and (name == "train" or self._section.drawn(name))]
        if empty:
            root, size = sizes.most_common(1)[0]
            members = [row for row in kept if groups.root(row) == root][:2] if size > 1 else []
            shown = [f"{self._rows[row].source}: {excerpt(self._rows[row])}" for row in members]
            raise DataError(explain_empty(empty, len(kept), (len(sizes), size, shown), self._section))
        return division

    def write(self, division: Division) -> None:
        """Write the sets as JSON Lines in the lossless `prepared` format, each row with its source."""
        train = repeat_by_weight(division.train, self._rows.origin, self._section.sources, self._section.seed)
        self._summary.repeated = len(train) - len(set(train))
        for row in sorted(set(division.train) - set(train)):
            self._intake.drop(row, "not drawn", "by its source's weight or share")
        for name, rows in (division.sets() | {"train": train}).items():
            self._summary.sets[name] = self._write(name, rows)

    def _write(self, name: str, numbers: Sequence[int]) -> int:
        """Write a set, from the numbers of its rows or from its own file; return its number of rows."""
        path, spool = set_path(self._folder, name), self._intake.set_rows.get(name, self._rows)
        if name in self._intake.set_rows:
            numbers = [row for row in range(len(spool)) if name == "test" or row not in self._leaked]
        if numbers:
            write_rows(path, (prepared.write(spool[row]) for row in numbers))
        else:  # an earlier call may have written one
            path.unlink(missing_ok=True)
        return len(numbers)
