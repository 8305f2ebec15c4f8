"""Records of every row left out or changed, before and after, written while rows are prepared.

The files are published whole, also if the preparation fails: then they are needed most.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from finetune.data.cleaning.clean import map_texts
from finetune.data.cleaning.privacy import mask_personal_data
from finetune.data.summary import CHANGED, DROPPED, PERSONAL, Summary
from gladstone.artifacts import atomic_file
from gladstone.chat.messages import Conversation
from gladstone.errors import DataError, GladstoneError
from gladstone.formats import Notes, prepared
from gladstone.rows import Problems, Row
from gladstone.strict_json import json_text


def stored_fields(row: Conversation) -> Row:
    """Return a row's texts as a prepared set stores them."""
    return {name: value for name, value in prepared.write(row).items() if name != "source"}


class Records(Problems):
    """Writes dropped.jsonl, changed.jsonl and personal.jsonl; readers report bad rows through `add`.

    With `hide`, only the masked text of a row is written.
    """

    def __init__(self, files: dict[str, TextIO], summary: Summary, *, hide: bool) -> None:
        super().__init__()
        self._files, self.summary, self._hide = files, summary, hide

    def add(self, error: DataError) -> None:
        super().add(error)
        source, _, detail = str(error).partition(": ")
        self.drop_unread(source, "bad row", detail)

    def drop_unread(self, source: str, reason: str, detail: str) -> None:
        """Record a row that is left out before it could be read as a conversation."""
        self.summary.dropped[reason] += 1
        self._write(DROPPED, {"source": source, "reason": reason, "detail": detail})

    def drop(self, row: Conversation, reason: str, detail: str = "", read: Row | None = None) -> None:
        """Record a row that is left out; `read` is the row before it was changed, if it was."""
        self.summary.dropped[reason] += 1
        line = {"source": row.source, "reason": reason} | ({"detail": detail} if detail else {})
        self._write(DROPPED, line | self._texts(row, read))

    def change(self, row: Conversation, steps: Sequence[str], read: Row) -> None:
        """Record a row that steps changed."""
        texts = self._texts(row, read)
        self._write(CHANGED, {"source": row.source, "steps": list(steps)} | texts)

    def personal(self, source: str, kinds: Counter[str]) -> None:
        """Record the kinds of personal data in a row."""
        self.summary.personal.update(kinds)
        self._write(PERSONAL, {"source": source, "found": dict(kinds)})

    def _texts(self, row: Conversation, read: Row | None) -> Row:
        masked = map_texts(row, lambda text: mask_personal_data(text)[0]) if self._hide else row
        after = stored_fields(masked)
        if masked is not row or read == after:
            return {"after": after}
        return {"before": after} if read is None else {"before": read, "after": after}

    def _write(self, name: str, line: dict[str, Any]) -> None:
        self._files[name].write(json_text(line) + "\n")


class SourceNotes(Notes):
    """Also records each row that is marked not to be trained on, with its reason."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records

    def leave_out(self, source: str, reason: str) -> None:
        super().leave_out(source, reason)
        self._records.drop_unread(source, "marked", reason)


@contextmanager
def recording(folder: Path, summary: Summary, *, hide: bool) -> Iterator[Records]:
    """Provide records in `folder`. A DataError raised inside is extended by where they are, if any row was left out."""
    failure: GladstoneError | None = None
    with ExitStack() as stack:
        files = {name: _open(folder / name, stack) for name in (DROPPED, CHANGED, PERSONAL)}
        try:
            yield Records(files, summary, hide=hide)
        except GladstoneError as error:
            failure = error
            empty = [name for name, file in files.items() if not file.tell()]
    if failure is None:
        return
    for name in empty:
        (folder / name).unlink(missing_ok=True)
    if (
        isinstance(failure, DataError) and summary.left_out > summary.dropped["bad row"]
    ):  # bad rows are listed in the error itself
        rows = "the row" if summary.left_out == 1 else f"each of the {summary.left_out:,} rows"
        location = f"{folder / DROPPED} lists {rows} left out so far, with the reason."
        raise DataError(f"{failure}\n{location}") from failure
    raise failure


def _open(path: Path, stack: ExitStack) -> TextIO:
    return stack.enter_context(stack.enter_context(atomic_file(path)).open("w", encoding="utf-8"))
