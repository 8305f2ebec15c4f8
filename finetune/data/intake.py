"""Reads, cleans and checks the rows of all files, and records why a row is left out."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from finetune.config.data import DataSection, Source
from finetune.data.cleaning.boilerplate import Boilerplate
from finetune.data.cleaning.clean import clean, map_texts
from finetune.data.cleaning.flaws import OPTIONS, Flaw, flaws
from finetune.data.cleaning.privacy import mask_personal_data
from finetune.data.records import Records, SourceNotes, stored_fields
from finetune.data.set_files import count_copies
from finetune.data.sources import source_file
from finetune.data.spool import Spool
from finetune.tokens.labeller import NOTHING_SCORED
from finetune.tokens.refusals import RefusedError, RowCheck
from finetune.tokens.tokenize import scored_turns
from gladstone.chat.messages import Conversation
from gladstone.commands.progress import Progress
from gladstone.errors import DataError, GladstoneError
from gladstone.formats import Layout, iter_conversations
from gladstone.rows import Problems, Row

PROGRESS_EVERY = 1000  # rows
MAX_REASONS = 40  # distinct reasons counted for a base's refusals: a template may raise any text


class Intake:
    """The rows of the sources, in `rows`, and those of each set's own file, in `set_rows`, on disk."""

    def __init__(self, section: DataSection, folder: Path, stack: ExitStack, records: Records) -> None:
        self.section, self.folder, self.summary = section, folder, records.summary
        self._stack, self._records = stack, records
        self.rows = self._spool("rows")
        self.set_rows: dict[str, Spool] = {}
        self._notes: list[str] = []  # notes on the files' fields
        self._boilerplate = Boilerplate() if section.cleaning.boilerplate != "keep" else None

    def _spool(self, name: str) -> Spool:
        return self._stack.enter_context(Spool(self.folder / f".{name}.partial"))

    def read(self, sources: Sequence[tuple[Source, Layout]], progress: Progress) -> None:
        """Read and clean every row of every source. Raises DataError for bad rows, unless they may be skipped."""
        for origin, (source, layout) in enumerate(sources):
            notes = self._read(source, layout, (self.rows, origin), progress)
            if not self.section.skip_bad:
                self._records.check("bad rows; --skip-bad leaves them out")
            several = f"{source.path}: " if len(sources) > 1 or self.section.own_files else ""
            self._notes += [several + note for note in notes]
        self.summary.notes = [*self._records.noted(), *self._notes]

    def read_set_file(self, name: str, source: Source, layout: Layout, progress: Progress) -> None:
        """Read and clean every row of a set's own file. Raises DataError for bad rows, and if no row is left."""
        spool = self.set_rows[name] = self._spool(name)
        left_out = Counter(self.summary.dropped)
        try:
            notes = self._read(source, layout, (spool, 0), progress)
            self.summary.sources[-1]["set"] = name
            if not self.section.skip_bad:
                self._records.check("bad rows; --skip-bad leaves them out")
        except GladstoneError as error:
            raise DataError(f"data.{name}: {error}") from None
        self._check_set_file(name, left_out)
        self._notes += [f"{source.path}: {note}" for note in notes]
        copies = count_copies(spool)
        if copies:
            rows = "1 row is an exact copy" if copies == 1 else f"{copies:,} rows are exact copies"
            self._notes.append(f"{source.path}: {rows} of another; the {name} set keeps them")
        self.summary.notes = [*self._records.noted(), *self._notes]

    def _check_set_file(self, name: str, left_out: Counter[str]) -> None:
        """Raise DataError, with the reasons counted since `left_out`, if no row of the set is left."""
        if not len(self.set_rows[name]):
            why = ", ".join(f"{reason} {count:,}" for reason, count in (self.summary.dropped - left_out).items())
            path = self.section.own_files[name].path
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
        rows = self.summary.read - before
        self.summary.sources.append({"path": source.path, "format": layout.name, "rows": rows})
        return list(notes.lines())

    def _clean(self, row: Conversation, into: tuple[Spool, int]) -> None:
        if not scored_turns(row.messages, self.section.train):
            self.summary.options[NOTHING_SCORED] = f"data.train={self.section.train}"
            self._records.drop(row, NOTHING_SCORED)
            return
        cleaned = clean(row, self.section.cleaning)
        read = stored_fields(row) if cleaned.changed else None
        if self._is_flawed(cleaned.row, read):
            self._record_change(cleaned.row, cleaned.changed, read)
            return
        kept = self._apply_privacy(cleaned.row)
        if kept is None:
            self.summary.options["personal data"] = "data.cleaning.privacy=drop"
            self._records.drop(cleaned.row, "personal data", read=read)
            return
        masked = kept is not cleaned.row
        read = stored_fields(kept) if masked else read  # personal data must not reach the records
        self._record_change(kept, (*cleaned.changed, *(["privacy"] if masked else [])), read)
        for name in cleaned.noted:
            self.summary.note(name, row.source)
        spool, origin = into
        spool.add(kept, origin, read)
        if self._boilerplate and spool is self.rows:
            self._boilerplate.count(kept)

    def _record_change(self, row: Conversation, steps: Sequence[str], read: Row | None) -> None:
        if read is not None:
            self.summary.changed.update(steps)
            self._records.change(row, steps, read)

    def _is_flawed(self, row: Conversation, read: Row | None) -> bool:
        """Record the row and return True if a flaw leaves it out; note flaws that do not."""
        row_flaws = list(flaws(row, self.section.cleaning))
        for flaw in row_flaws:
            if flaw.drops:
                self._records.drop(row, flaw.reason, flaw.detail, read)
                self._record_option(flaw)
                return True
        for flaw in row_flaws:
            self.summary.note(flaw.reason, row.source)
        return False

    def _record_option(self, flaw: Flaw) -> None:
        """Record the option that leaves rows out for a reason, and the length farthest beyond its limit."""
        if flaw.reason in OPTIONS:
            field = OPTIONS[flaw.reason]
            self.summary.options[flaw.reason] = f"data.cleaning.{field}={getattr(self.section.cleaning, field)}"
        if flaw.size is not None:
            farthest = min if flaw.reason == "too short" else max
            self.summary.beyond[flaw.reason] = farthest(flaw.size, self.summary.beyond.get(flaw.reason, flaw.size))

    def _apply_privacy(self, row: Conversation) -> Conversation | None:
        """Apply the privacy option and record findings: return the row unchanged or masked, or None to drop it."""
        privacy = self.section.cleaning.privacy
        if privacy == "off":
            return row
        kinds: Counter[str] = Counter()

        def mask(text: str) -> str:
            masked, counts = mask_personal_data(text)
            kinds.update(counts)
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
        if self.section.cleaning.boilerplate == "remove":
            self.rows = self._strip_boilerplate(self._boilerplate, self.rows, "stripped")
            for name, spool in self.set_rows.items():
                self.set_rows[name] = self._strip_boilerplate(self._boilerplate, spool, f"{name}-stripped")
                self._check_set_file(name, Counter())
        else:
            for row in chain(self.rows, *self.set_rows.values()):
                if self._boilerplate.strip(row) is not row:
                    self.summary.note("boilerplate", row.source)
        self.summary.boilerplate = self._boilerplate.sentences()

    def _strip_boilerplate(self, boilerplate: Boilerplate, spool: Spool, name: str) -> Spool:
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
        spools = {"rows": self.rows} | self.set_rows
        refused = {name: self._refused(spool, check, problems) for name, spool in spools.items()}
        if problems.count and not self.section.skip_bad:
            problems.check("rows that the base cannot be trained on; --skip-bad leaves them out")
        for name, numbers in refused.items():
            if numbers:
                accepted = self._accepted(name, spools[name], numbers)
                if name == "rows":
                    self.rows = accepted
                else:
                    self.set_rows[name] = accepted
                    self._check_set_file(name, Counter())
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
        self.summary.options[reason] = "data.skip_bad=true" if self.section.skip_bad else "--skip-bad"
        self.drop(number, reason, error.detail, spool=spool)

    def drop(self, number: int, reason: str, detail: str = "", *, spool: Spool | None = None) -> None:
        """Record a row that was kept so far as left out."""
        rows = self.rows if spool is None else spool
        self._records.drop(rows[number], reason, detail, rows.read(number))
