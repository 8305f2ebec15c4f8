"""Sources to three sets of clean rows that share nothing, and a reason for every row that is in none of them.

Memory does not grow with the length of rows, and by some 200 bytes with each row.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from finetune.data.boilerplate import Boilerplate
from finetune.data.clean import flaw, map_texts, text_steps
from finetune.data.division import Division, divide, mix
from finetune.data.duplicates import Duplicates
from finetune.data.leaks import LeakIndex
from finetune.data.privacy import mask_personal
from finetune.data.section import DataSection, Source
from finetune.data.spool import Spool
from gladstone.artifacts import check_writable, remove_partials, whole_file, write_json, write_rows
from gladstone.chat import Conversation
from gladstone.errors import DataError
from gladstone.formats import Layout, Notes, checked_conversations, iter_conversations, prepared
from gladstone.progress import Progress, step
from gladstone.rows import Problems, read_rows

DROPPED, PERSONAL, SUMMARY = "dropped.jsonl", "personal.jsonl", "data.json"
TOLD_EVERY = 1000  # rows


@dataclass
class Summary:
    """What became of the rows: what was read, changed, left out and why, and how many each set has."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the files, fields not used, values read as text
    read: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    boilerplate_sentences: int = 0
    personal: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    kept_duplicates: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    repeated: int = 0

    @property
    def left_out(self) -> int:
        """How many rows are in no set."""
        return sum(self.dropped.values())


def prepare(section: DataSection, folder: Path, progress: Progress) -> Summary:
    """Write train.jsonl, validation.jsonl, test.jsonl, dropped.jsonl and data.json into `folder`.

    Raises DataError for bad rows (unless `skip_bad`), for rows that cannot be divided, and ConfigError for the section.
    """
    layouts = [source.layout() for source in section.sources]
    check_writable(folder)
    remove_partials(folder)
    with ExitStack() as stack:
        work = _Work(section, folder, stack)
        with step(progress, "Reading and cleaning the rows"):
            work.read(list(zip(section.sources, layouts, strict=True)), progress)
            work.strip_boilerplate()
            progress.update(None, f"{len(work.rows):,} of {work.summary.read:,} rows kept")
        with step(progress, "Looking for duplicates"):
            kept = work.without_duplicates()
            progress.update(None, f"{len(work.rows) - len(kept):,} left out")
        if section.held_out:
            with step(progress, "Looking for rows of the held-out files"):
                before = len(kept)
                kept = work.without_leaks(kept)
                progress.update(None, f"{before - len(kept):,} left out")
        with step(progress, "Dividing and writing the rows"):
            work.write(work.divide(work.draw(kept)))
    write_json(folder / SUMMARY, vars(work.summary))
    return work.summary


def read_set(folder: Path, name: str) -> Iterator[Conversation]:
    """The rows of a prepared set, each with the source that it came from."""
    for row, place in read_rows(folder / f"{name}.jsonl"):
        yield Layout("prepared").read(row, place)


def describe(summary: Summary, folder: Path) -> str:
    """What became of the rows, in lines for the terminal."""
    personal = f"  → {folder / PERSONAL}" if summary.personal else ""
    lines = [
        ("read", summary.read, ", ".join(f"{each['path']} ({each['format']})" for each in summary.sources)),
        ("changed", None, _counts(summary.changed)),
        ("personal", sum(summary.personal.values()), _counts(summary.personal) + personal),
        ("left out", summary.left_out, f"{_counts(summary.dropped)}  → {folder / DROPPED}"),
        ("written", sum(summary.sets.values()), _counts(summary.sets)),
    ]
    if summary.repeated:
        lines.append(("repeated", summary.repeated, "training rows, by their sources' weight or share"))
    lines += [("note", None, note) for note in summary.notes]
    return "\n".join(f"{name:9} {'' if count is None else f'{count:,}':>10}  {told}" for name, count, told in lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"


class _DroppedRows(Problems):
    """Writes each row that is left out, with its reason; bad rows come in through `add`, as the readers know it."""

    def __init__(self, file: TextIO, counts: Counter[str]) -> None:
        super().__init__()
        self._file, self._counts = file, counts

    def add(self, error: DataError) -> None:
        super().add(error)
        source, _, detail = str(error).partition(": ")
        self.drop(source, "bad row", detail)

    def drop(self, source: str, reason: str, detail: str = "") -> None:
        """Write one row's reason."""
        self._counts[reason] += 1
        line = {"source": source, "reason": reason} | ({"detail": detail} if detail else {})
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


class _SourceNotes(Notes):
    """Writes each row that is left out by what it says of itself, with its reason."""

    def __init__(self, dropped: _DroppedRows) -> None:
        super().__init__()
        self._dropped = dropped

    def leave_out(self, source: str, reason: str) -> None:
        super().leave_out(source, reason)
        self._dropped.drop(source, "marked", reason)


class _Work:
    """The rows while they are prepared."""

    def __init__(self, section: DataSection, folder: Path, stack: ExitStack) -> None:
        self._section, self._folder, self._stack = section, folder, stack
        self.summary = Summary()
        self._steps = text_steps(section.cleaning)
        self._dropped = _DroppedRows(self._open(DROPPED), self.summary.dropped)
        self._personal = self._open(PERSONAL)
        self.rows = self._stack.enter_context(Spool(folder / ".rows.partial"))
        self._boilerplate = Boilerplate() if section.cleaning.boilerplate else None

    def _open(self, name: str) -> TextIO:
        partial = self._stack.enter_context(whole_file(self._folder / name))
        return self._stack.enter_context(partial.open("w", encoding="utf-8"))

    def read(self, sources: Sequence[tuple[Source, Layout]], progress: Progress) -> None:
        """Every row of every source, cleaned. Raises DataError for bad rows, unless they may be skipped."""
        told_of_fields: list[str] = []
        for origin, (source, layout) in enumerate(sources):
            before, bad_before = self.summary.read, self._dropped.count
            notes = _SourceNotes(self._dropped)
            found = iter_conversations(source.file(), layout, self._dropped, notes)
            for row in islice(found, source.first_rows):
                self._clean(row, origin)
                self.summary.read += 1
                if self.summary.read % TOLD_EVERY == 0:
                    progress.update(None, f"{self.summary.read:,} rows")
            if not self._section.skip_bad:
                self._dropped.check("bad rows, which --skip-bad would leave out")
            self.summary.read += self._dropped.count - bad_before + notes.left_out.total()
            told = {"path": source.path, "format": layout.name, "rows": self.summary.read - before}
            self.summary.sources.append(told)
            several = f"{source.path}: " if len(sources) > 1 else ""
            told_of_fields += [several + note for note in notes.lines()]
        self.summary.notes = [*self._dropped.noted(), *told_of_fields]

    def _clean(self, row: Conversation, origin: int) -> None:
        cleaning = self._section.cleaning
        for name, change in self._steps.items():
            changed = map_texts(row, change)
            self.summary.changed[name] += changed is not row
            row = changed
        reason = flaw(row, cleaning)
        if reason:
            self._dropped.drop(row.source, *reason)
            return
        if cleaning.privacy != "off":
            masked = self._find_personal(row)
            if masked is not row and cleaning.privacy == "drop":
                self._dropped.drop(row.source, "personal data")
                return
            row = masked if cleaning.privacy == "mask" else row
        self.rows.add(row, origin)
        if self._boilerplate:
            self._boilerplate.count(row)

    def _find_personal(self, row: Conversation) -> Conversation:
        kinds: Counter[str] = Counter()

        def mask(text: str) -> str:
            masked, found = mask_personal(text)
            kinds.update(found)
            return masked

        masked = map_texts(row, mask)
        if kinds:
            self.summary.personal.update(kinds)
            self._personal.write(json.dumps({"source": row.source, "found": dict(kinds)}) + "\n")
        return masked

    def strip_boilerplate(self) -> None:
        """Take boilerplate off the answers, if there is any, and look again at the rows that lost some."""
        if self._boilerplate is None:
            return
        self.summary.boilerplate_sentences = self._boilerplate.find()
        if not self.summary.boilerplate_sentences:
            return
        stripped = self._stack.enter_context(Spool(self._folder / ".stripped.partial"))
        for number, row in enumerate(self.rows):
            short = self._boilerplate.strip(row)
            self.summary.changed["boilerplate"] += short is not row
            reason = flaw(short, self._section.cleaning) if short is not row else None
            if reason:
                self._dropped.drop(row.source, *reason)
            else:
                stripped.add(short, self.rows.origin(number))
        self.rows.close()
        self.rows = stripped

    def without_duplicates(self) -> list[int]:
        """The rows that repeat no other, or all of them where duplicates are kept; their groups are known."""
        if not len(self.rows):
            raise DataError(f"no row is left of {self.summary.read:,}: {_counts(self.summary.dropped)}.")
        self.duplicates = Duplicates(self.rows, self._section.duplicates.similarity)
        self.duplicates.find()
        if self._section.duplicates.keep:
            self.summary.kept_duplicates = len(self.duplicates.partners)
            return list(range(len(self.rows)))
        for number, (partner, similarity) in sorted(self.duplicates.partners.items()):
            row, other = self.rows[number], self.rows[partner]
            copy = row.messages == other.messages
            reason = "exact copy" if copy else "near duplicate"
            detail = f"of {other.source}" + ("" if copy else f", similarity {similarity:.2f}")
            self._dropped.drop(row.source, reason, detail)
        return [row for row in range(len(self.rows)) if row not in self.duplicates.partners]

    def without_leaks(self, kept: list[int]) -> list[int]:
        """The rows that no held-out file has."""
        sources = self._section.held_out
        held_out = (checked_conversations(each.file(), each.layout(), each.first_rows) for each in sources)
        index = LeakIndex(chain.from_iterable(held_out), self._section.duplicates.similarity or 1.0)
        leaks = dict(index.leaks(self.rows[row] for row in kept))
        for leak in leaks.values():
            self._dropped.drop(leak.train, "leak", f"{leak.kind} as {leak.test}, {leak.similarity:.2f}")
        return [row for place, row in enumerate(kept) if place not in leaks]

    def draw(self, kept: list[int]) -> list[int]:
        """At most `max_rows` of the rows."""
        limit = self._section.max_rows
        if limit is None or limit >= len(kept):
            return kept
        drawn = set(random.Random(self._section.seed).sample(kept, limit))  # noqa: S311 - a draw, not a secret
        for row in kept:
            if row not in drawn:
                self._dropped.drop(self.rows[row].source, "not drawn", f"max_rows is {limit:,}")
        return sorted(drawn)

    def divide(self, kept: list[int]) -> Division:
        """The sets; rows that ask the same question are in one. Raises DataError if a set would be empty."""
        groups = self.duplicates.groups.copy()
        groups.join_equal(self.duplicates.questions)
        division = divide(kept, groups, self._section, lambda row: int(self.duplicates.questions[row]))
        empty = [name for name, rows in division.sets().items() if not rows]
        if empty:
            raise DataError(
                f"{len(kept):,} rows are too few to divide: none is left for the {' and the '.join(empty)} set."
            )
        return division

    def write(self, division: Division) -> None:
        """The sets as JSON Lines in the `prepared` format, which loses nothing, each row with its source."""
        train = mix(division.train, self.rows.origin, self._section.sources, self._section.seed)
        self.summary.repeated = len(train) - len(set(train))
        for row in sorted(set(division.train) - set(train)):
            self._dropped.drop(self.rows[row].source, "not drawn", "by its source's weight or share")
        for name, rows in (division.sets() | {"train": train}).items():
            self.summary.sets[name] = len(rows)
            write_rows(self._folder / f"{name}.jsonl", (prepared.write(self.rows[row]) for row in rows))
