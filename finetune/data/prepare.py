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
from finetune.data.cleaning.boilerplate import Boilerplate
from finetune.data.cleaning.clean import clean, map_texts
from finetune.data.cleaning.flaws import OPTIONS, Flaw, flaws
from finetune.data.cleaning.privacy import mask_personal_data
from finetune.data.division import SETS, Division, divide, explain_empty, repeat_by_weight
from finetune.data.duplicates.conflicts import excerpt, write_conflicts
from finetune.data.duplicates.duplicates import Duplicates
from finetune.data.duplicates.groups import Groups
from finetune.data.leaks.leaks import LeakIndex, least_score
from finetune.data.records import Records, SourceNotes, recording, stored_fields
from finetune.data.set_files import count_copies, set_file_layouts
from finetune.data.sources import source_file, source_layout
from finetune.data.spool import Spool
from finetune.data.summary import CHANGED, CONFLICTS, DROPPED, PERSONAL, SUMMARY, Summary, describe
from finetune.tokens.labeller import NOTHING_SCORED
from finetune.tokens.refusals import RefusedError, RowCheck
from finetune.tokens.tokenize import scored_turns
from gladstone.artifacts import check_writable, remove_partials, write_json, write_rows
from gladstone.chat.messages import Conversation
from gladstone.commands.progress import Progress, step
from gladstone.errors import DataError, GladstoneError
from gladstone.formats import Layout, Notes, iter_conversations, prepared
from gladstone.rows import Problems, Row, read_rows
from gladstone.run_folder import set_path

__all__ = ["CHANGED", "DROPPED", "PERSONAL", "SUMMARY", "Summary", "describe", "has_set", "prepare", "read_set"]

PROGRESS_EVERY = 1000  # rows
HELD_OUT_FILES = "held-out files"
MAX_REASONS = 40  # distinct reasons counted for a base's refusals: a template may raise any text


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
    own = set_file_layouts(section)
    check_writable(folder)
    remove_partials(folder)
    summary = Summary()
    hide = section.cleaning.privacy in ("mask", "drop")
    with recording(folder, summary, hide=hide) as records, ExitStack() as stack:
        work = _Work(section, folder, stack, records)
        with step(progress, "Reading and cleaning the rows"):
            work.read(list(zip(section.sources, layouts, strict=True)), progress)
            for name, layout in own.items():
                work.read_own(name, section.own_files[name], layout, progress)
            work.find_boilerplate()
            progress.update(None, f"{len(work.rows):,} of {work.summary.read:,} rows kept")
        if base_check is not None and len(work.rows):
            check = base_check()
            with step(progress, "Checking the rows against the base"):
                progress.update(None, f"{work.leave_out_refused(check):,} left out")
        with step(progress, "Looking for duplicates"):
            kept = work.without_duplicates()
            progress.update(None, f"{len(work.rows) - len(kept):,} left out")
        for name, rows in work.held_out():
            with step(progress, f"Looking for rows that the {name} contain{'s' * (name != HELD_OUT_FILES)}"):
                before = len(kept)
                kept = work.without_leaks(kept, name, rows)
                progress.update(None, f"{before - len(kept):,} left out")
        with step(progress, "Dividing and writing the rows"):
            work.write(work.divide(work.draw(kept)))
    write_json(folder / SUMMARY, vars(summary))
    return summary


def read_set(folder: Path, name: str) -> Iterator[Conversation]:
    """Yield the rows of a prepared set, each with its original source; none if the set does not exist."""
    if name in HELD and not has_set(folder, name):
        return
    for row, place in read_rows(set_path(folder, name)):
        yield Layout("prepared").read(row, place)


def has_set(folder: Path, name: str) -> bool:
    """True if the set was prepared; an empty validation or test set has no file."""
    return set_path(folder, name).is_file()


class _Work:
    """The state of one preparation; `_own` maps a set's name to the rows of its own file."""

    def __init__(self, section: DataSection, folder: Path, stack: ExitStack, records: Records) -> None:
        self._section, self._folder, self._stack, self._records = section, folder, stack, records
        self.summary = records.summary
        self.rows = self._spool("rows")
        self._own: dict[str, Spool] = {}
        self._leaked: set[int] = set()  # rows of the validation set's own file that are in the test set's file too
        self._notes: list[str] = []  # notes on the files' fields
        self._boilerplate = Boilerplate() if section.cleaning.boilerplate != "keep" else None

    def _spool(self, name: str) -> Spool:
        return self._stack.enter_context(Spool(self._folder / f".{name}.partial"))

    def read(self, sources: Sequence[tuple[Source, Layout]], progress: Progress) -> None:
        """Read and clean every row of every source. Raises DataError for bad rows, unless they may be skipped."""
        for origin, (source, layout) in enumerate(sources):
            notes = self._read(source, layout, (self.rows, origin), progress)
            if not self._section.skip_bad:
                self._records.check("bad rows; --skip-bad leaves them out")
            several = f"{source.path}: " if len(sources) > 1 or self._section.own_files else ""
            self._notes += [several + note for note in notes]
        self.summary.notes = [*self._records.noted(), *self._notes]

    def read_own(self, name: str, source: Source, layout: Layout, progress: Progress) -> None:
        """Read and clean every row of a set's own file. Raises DataError for bad rows, and if no row is left."""
        spool = self._own[name] = self._spool(name)
        left_out = Counter(self.summary.dropped)
        try:
            notes = self._read(source, layout, (spool, 0), progress)
            self.summary.sources[-1]["set"] = name
            if not self._section.skip_bad:
                self._records.check("bad rows; --skip-bad leaves them out")
        except GladstoneError as error:
            raise DataError(f"data.{name}: {error}") from None
        self._check_own(name, left_out)
        self._notes += [f"{source.path}: {note}" for note in notes]
        copies = count_copies(spool)
        if copies:
            rows = "1 row is an exact copy" if copies == 1 else f"{copies:,} rows are exact copies"
            self._notes.append(f"{source.path}: {rows} of another; the {name} set keeps them")
        self.summary.notes = [*self._records.noted(), *self._notes]

    def _check_own(self, name: str, left_out: Counter[str]) -> None:
        """Raise DataError, with the reasons counted since `left_out`, if no row of the set is left."""
        if not len(self._own[name]):
            why = ", ".join(f"{reason} {count:,}" for reason, count in (self.summary.dropped - left_out).items())
            path = self._section.own_files[name].path
            raise DataError(f"data.{name}: {path} has no usable row{f': {why}' if why else ''}.")

    def _read(self, source: Source, layout: Layout, into: tuple[Spool, int], progress: Progress) -> list[str]:
        """Read and clean the rows of a file into a spool, with their origin; return the notes on its fields."""
        before, bad_before = self.summary.read, self._records.count
        notes = SourceNotes(self._records)
        for row in islice(iter_conversations(source_file(source), layout, self._records, notes), source.first_rows):
            self._clean(row, into)
            self.summary.read += 1
            if self.summary.read % PROGRESS_EVERY == 0:
                progress.update(None, f"{self.summary.read:,} rows")
        self.summary.read += self._records.count - bad_before + notes.left_out.total()
        told = {"path": source.path, "format": layout.name, "rows": self.summary.read - before}
        self.summary.sources.append(told)
        return list(notes.lines())

    def _clean(self, row: Conversation, into: tuple[Spool, int]) -> None:
        if not scored_turns(row.messages, self._section.train):
            self.summary.options[NOTHING_SCORED] = f"data.train={self._section.train}"
            self._records.drop(row, NOTHING_SCORED)
            return
        cleaned = clean(row, self._section.cleaning)
        read = stored_fields(row) if cleaned.changed else None
        if self._is_flawed(cleaned.row, read):
            self._tell_changed(cleaned.row, cleaned.changed, read)
            return
        kept = self._private(cleaned.row)
        if kept is None:
            self.summary.options["personal data"] = "data.cleaning.privacy=drop"
            self._records.drop(cleaned.row, "personal data", read=read)
            return
        masked = kept is not cleaned.row
        read = stored_fields(kept) if masked else read  # personal data must not reach the records
        self._tell_changed(kept, (*cleaned.changed, *(["privacy"] if masked else [])), read)
        for name in cleaned.noted:
            self.summary.note(name, row.source)
        spool, origin = into
        spool.add(kept, origin, read)
        if self._boilerplate and spool is self.rows:
            self._boilerplate.count(kept)

    def _tell_changed(self, row: Conversation, steps: Sequence[str], read: Row | None) -> None:
        if read is not None:
            self.summary.changed.update(steps)
            self._records.change(row, steps, read)

    def _is_flawed(self, row: Conversation, read: Row | None) -> bool:
        """Record the row and return True if a flaw leaves it out; note flaws that do not."""
        found = list(flaws(row, self._section.cleaning))
        for each in found:
            if each.drops:
                self._records.drop(row, each.reason, each.detail, read)
                self._tell_option(each)
                return True
        for each in found:
            self.summary.note(each.reason, row.source)
        return False

    def _tell_option(self, found: Flaw) -> None:
        """Record the option that leaves rows out for a reason, and the length farthest beyond its limit."""
        if found.reason in OPTIONS:
            field = OPTIONS[found.reason]
            self.summary.options[found.reason] = f"data.cleaning.{field}={getattr(self._section.cleaning, field)}"
        if found.size is not None:
            farthest = min if found.reason == "too short" else max
            self.summary.beyond[found.reason] = farthest(found.size, self.summary.beyond.get(found.reason, found.size))

    def _private(self, row: Conversation) -> Conversation | None:
        """Apply the privacy option and record findings: return the row unchanged or masked, or None to drop it."""
        privacy = self._section.cleaning.privacy
        if privacy == "off":
            return row
        kinds: Counter[str] = Counter()

        def mask(text: str) -> str:
            masked, found = mask_personal_data(text)
            kinds.update(found)
            return masked

        masked = map_texts(row, mask)
        if not kinds:
            return row
        self._records.personal(row.source, kinds)
        return {"mask": masked, "drop": None, "report": row}[privacy]

    def find_boilerplate(self) -> None:
        """Find boilerplate; if configured, remove it and check the changed rows for flaws again."""
        if self._boilerplate is None:
            return
        self.summary.boilerplate_sentences = self._boilerplate.find()
        if not self.summary.boilerplate_sentences:
            return
        if self._section.cleaning.boilerplate == "remove":
            self.rows = self._stripped(self._boilerplate, self.rows, "stripped")
            for name, spool in self._own.items():
                self._own[name] = self._stripped(self._boilerplate, spool, f"{name}-stripped")
                self._check_own(name, Counter())
        else:
            for row in chain(self.rows, *self._own.values()):
                if self._boilerplate.strip(row) is not row:
                    self.summary.note("boilerplate", row.source)
        self.summary.boilerplate = self._boilerplate.sentences()

    def _stripped(self, boilerplate: Boilerplate, spool: Spool, name: str) -> Spool:
        stripped = self._spool(name)
        for number, row in enumerate(spool):
            short, read = boilerplate.strip(row), spool.read(number)
            if short is not row:
                self.summary.changed["boilerplate"] += 1
                self._records.change(short, ["boilerplate"], stored_fields(row))
                read = read or stored_fields(row)
                if self._is_flawed(short, read):
                    continue
            stripped.add(short, spool.origin(number), read)
        spool.close()
        return stripped

    def leave_out_refused(self, check: RowCheck) -> int:
        """Leave out rows that the base cannot be trained on, and count them. Raises DataError unless `skip_bad`."""
        problems = Problems()
        spools = {"rows": self.rows} | self._own
        refused = {name: self._refused(spool, check, problems) for name, spool in spools.items()}
        if problems.count and not self._section.skip_bad:
            problems.check("rows that the base cannot be trained on; --skip-bad leaves them out")
        for name, numbers in refused.items():
            if numbers:
                accepted = self._accepted(name, spools[name], numbers)
                if name == "rows":
                    self.rows = accepted
                else:
                    self._own[name] = accepted
                    self._check_own(name, Counter())
        return problems.count

    def _accepted(self, name: str, spool: Spool, refused: set[int]) -> Spool:
        accepted = self._spool(f"accepted-{name}")
        for number, row in enumerate(spool):
            if number not in refused:
                accepted.add(row, spool.origin(number), spool.read(number))
        spool.close()
        return accepted

    def _refused(self, spool: Spool, check: RowCheck, problems: Problems) -> set[int]:
        """Return the rows of a spool that the base refuses, and record each."""
        refused = set()
        for number, row in enumerate(spool):
            try:
                check(row)
            except RefusedError as error:
                problems.add(error)
                refused.add(number)
                self._refuse(spool, number, error)
        return refused

    def _refuse(self, spool: Spool, number: int, error: RefusedError) -> None:
        reason = error.reason
        if reason not in self.summary.dropped and len(self.summary.dropped) >= MAX_REASONS:
            reason = "refused by the base"
        self.summary.options[reason] = "data.skip_bad=true" if self._section.skip_bad else "--skip-bad"
        self._drop(number, reason, error.detail, spool=spool)

    def _drop(self, number: int, reason: str, detail: str = "", *, spool: Spool | None = None) -> None:
        """Record a row that was kept so far as left out."""
        rows = self.rows if spool is None else spool
        self._records.drop(rows[number], reason, detail, rows.read(number))

    def without_duplicates(self) -> list[int]:
        """Return the rows that repeat no other, or all rows if duplicates are kept; their groups are set."""
        if not len(self.rows):
            raise DataError(f"no row is left of {self.summary.read:,}: {self.summary.reasons()}.")
        self.duplicates = Duplicates(self.rows, self._section.duplicates.similarity)
        self.duplicates.find()
        self.summary.conflicts, self.summary.conflict_examples = write_conflicts(
            self.duplicates, self._folder / CONFLICTS
        )
        if self._section.duplicates.keep:
            self.summary.kept_duplicates = len(self.duplicates.partners)
            return list(range(len(self.rows)))
        for number, (partner, similarity) in sorted(self.duplicates.partners.items()):
            row, other = self.rows[number], self.rows[partner]
            copy = row.messages == other.messages
            reason = "exact copy" if copy else "near duplicate"
            detail = f"of {other.source}" + ("" if copy else f", similarity {similarity:.2f}")
            self._drop(number, reason, detail)
        return [row for row in range(len(self.rows)) if row not in self.duplicates.partners]

    def held_out(self) -> Iterator[tuple[str, Iterable[Conversation]]]:
        """Yield the files whose rows must not be trained on, by name: first benchmarks, then the sets' own files."""
        sources = self._section.held_out
        if sources:
            yield HELD_OUT_FILES, chain.from_iterable(map(self._benchmark, sources))
        for name in reversed(
            HELD
        ):  # test first: a validation row that is also a test row would tune the training on the test
            if name in self._own:
                yield f"{name} file", self._own[name]

    def _benchmark(self, source: Source) -> Iterator[Conversation]:
        """Yield the rows of a benchmark file and record its notes.

        Raises DataError after the last row if any are bad.
        """
        problems, notes = Problems(), Notes()
        path = source_file(source)
        yield from islice(iter_conversations(path, source_layout(source), problems, notes), source.first_rows)
        problems.check(str(path))
        self.summary.notes += [f"{source.path}: {note}" for note in (*problems.noted(), *notes.lines())]

    def without_leaks(self, kept: list[int], name: str, rows: Iterable[Conversation]) -> list[int]:
        """Return the rows that a held-out file does not contain. Raises DataError if none is left."""
        reason = "leak" if name == HELD_OUT_FILES else f"leak into the {name}"
        index = LeakIndex(rows, least_score(self._section.duplicates.similarity))
        if name == "test file" and "validation" in self._own:
            own = self._own["validation"]
            self._leaked = self._leaks(index, own, range(len(own)), reason)
            if len(self._leaked) == len(own):
                raise DataError(
                    "data.validation: data.test contains all of its rows. Name other rows, or set one of them to 0."
                )
        leaks = self._leaks(index, self.rows, kept, reason)
        if len(leaks) == len(kept):
            raise DataError(f"no row is left to train on of {self.summary.read:,}: {self.summary.reasons()}.")
        return [row for row in kept if row not in leaks]

    def _leaks(self, index: LeakIndex, spool: Spool, rows: Sequence[int], reason: str) -> set[int]:
        """Leave out the rows that the index contains."""
        leaks = {rows[place]: leak for place, leak in index.leaks(spool[row] for row in rows)}
        for row, leak in leaks.items():
            difference = f": {leak.difference}" if leak.difference else ""
            self._drop(row, reason, f"{leak.kind} as {leak.test}, {leak.similarity:.2f}{difference}", spool=spool)
        return set(leaks)

    def draw(self, kept: list[int]) -> list[int]:
        """Draw at most `max_rows` of the rows."""
        limit = self._section.max_rows
        if limit is None or limit >= len(kept):
            return kept
        drawn = set(random.Random(self._section.seed).sample(kept, limit))  # noqa: S311 - a draw, not a secret
        for row in kept:
            if row not in drawn:
                self._drop(row, "not drawn", f"max_rows is {limit:,}")
        return sorted(drawn)

    def divide(self, kept: list[int]) -> Division:
        """Divide the rows into sets; rows that share an input, answer or context stay together.

        Raises DataError if one is empty.
        """
        groups = self.duplicates.split_groups() if self._section.duplicates.together else Groups(len(self.rows))
        sizes = Counter(groups.root(row) for row in kept)
        shared = [size for size in sizes.values() if size > 1]
        self.summary.groups, self.summary.largest_group = len(shared), max(shared, default=0)
        division = divide(kept, groups, self._section, lambda row: int(self.duplicates.questions[row]))
        sets = division.sets()
        empty = [name for name in SETS if not sets[name] and (name == "train" or self._section.drawn(name))]
        if empty:
            root, size = sizes.most_common(1)[0]
            members = [row for row in kept if groups.root(row) == root][:2] if size > 1 else []
            shown = [f"{self.rows[row].source}: {excerpt(self.rows[row])}" for row in members]
            raise DataError(explain_empty(empty, len(kept), (len(sizes), size, shown), self._section))
        return division

    def write(self, division: Division) -> None:
        """Write the sets as JSON Lines in the lossless `prepared` format, each row with its source."""
        train = repeat_by_weight(division.train, self.rows.origin, self._section.sources, self._section.seed)
        self.summary.repeated = len(train) - len(set(train))
        for row in sorted(set(division.train) - set(train)):
            self._drop(row, "not drawn", "by its source's weight or share")
        for name, rows in (division.sets() | {"train": train}).items():
            self.summary.sets[name] = self._write(name, rows)

    def _write(self, name: str, numbers: Sequence[int]) -> int:
        """Write a set, from the numbers of its rows or from its own file; return its number of rows."""
        path, spool = set_path(self._folder, name), self._own.get(name, self.rows)
        if name in self._own:
            numbers = [row for row in range(len(spool)) if name == "test" or row not in self._leaked]
        if numbers:
            write_rows(path, (prepared.write(spool[row]) for row in numbers))
        else:  # an earlier call may have written one
            path.unlink(missing_ok=True)
        return len(numbers)
