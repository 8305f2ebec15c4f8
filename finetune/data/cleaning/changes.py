"""Shows what cleaning changes in one row, line by line, before and after."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from finetune.config.data import CleaningSection
from finetune.data.cleaning.clean import clean, map_texts
from finetune.data.cleaning.findings import describe_finding
from finetune.data.cleaning.flaws import flaws
from finetune.data.cleaning.privacy import mask_personal_data
from gladstone.chat.messages import Conversation

SHOWN_LINES = 12
SHOWN_CHARS = 160


@dataclass(frozen=True)
class Changes:
    """`steps` changed the row, `lines` are marked − or + and name their turn; `noted` names findings left unchanged."""

    steps: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()


NO_CHANGES = Changes()


def clean_for_preview(read: Conversation, section: CleaningSection) -> tuple[Conversation, Changes, str]:
    """Return a row as it is trained on, what changed, and why it is left out ('' if it is not).

    Boilerplate stays: identifying it takes all rows.
    """
    result = clean(read, section)
    row_flaws = list(flaws(result.row, section))
    why = next((f"{flaw.reason}, {flaw.detail}" for flaw in row_flaws if flaw.drops), "")
    masked = map_texts(result.row, lambda text: mask_personal_data(text)[0])
    is_named = masked is not result.row
    if section.privacy == "drop" and is_named:
        why = why or "personal data (data.cleaning.privacy=drop)"
    row = masked if section.privacy == "mask" else result.row
    steps = (*result.changed, *(["privacy"] if row is not result.row else []))
    noted = (*result.noted, *(flaw.reason for flaw in row_flaws if not flaw.drops))
    return row, Changes(steps, tuple(changed_lines(read, row)), noted), why


def changed_lines(read: Conversation, row: Conversation) -> Iterator[str]:
    """Yield the lines that differ between a row as read and as trained on."""
    for number, (before, after) in enumerate(zip(read.messages, row.messages, strict=True), 1):
        parts = (("", before.content, after.content), (" reasoning", before.reasoning or "", after.reasoning or ""))
        for name, old, new in parts:
            for mark, line in _differing(old, new):
                yield f"{mark} {number} {before.role}{name}: {visible(line)}"


def _differing(old: str, new: str) -> Iterator[tuple[str, str]]:
    if old == new:
        return
    before, after = old.split("\n"), new.split("\n")
    for kind, begin, end, start, stop in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from (("−", line) for line in before[begin:end])
            yield from (("+", line) for line in after[start:stop])


def visible(line: str) -> str:
    """Make a line's hidden characters visible: unprintable ones as escapes, trailing spaces as ·."""
    bare = line.rstrip(" ")
    line = bare + "·" * (len(line) - len(bare))
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in line)
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[: SHOWN_CHARS - 1]}…"


def describe_changes(changes: Changes, *, colour: bool) -> list[str]:
    """Return the changes as lines for the terminal; findings left unchanged name the option that acts on them."""
    import click

    colours = {"−": "red", "+": "yellow"}
    lines = [f"changed by {', '.join(changes.steps)}:"] if changes.steps else []
    lines += [click.style(line, fg=colours[line[0]]) if colour else line for line in islice(changes.lines, SHOWN_LINES)]
    if len(changes.lines) > SHOWN_LINES:
        lines.append(f"  … {len(changes.lines) - SHOWN_LINES:,} more lines")
    return [*lines, *(f"kept as is: {describe_finding(name)}" for name in changes.noted)]
