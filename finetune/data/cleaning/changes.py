"""What cleaning did to one row, line by line, for people: what stood there, and what stands there instead."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from finetune.config.data import CleaningSection
from finetune.data.cleaning.clean import clean, map_texts
from finetune.data.cleaning.flaws import flaws
from finetune.data.cleaning.privacy import mask_personal
from finetune.data.summary import how_to_act
from gladstone.chat.messages import Conversation

SHOWN_LINES = 12
SHOWN_CHARS = 160


@dataclass(frozen=True)
class Changes:
    """`steps` changed the row, `lines` are marked − or +, each with its turn; `noted` names what was left as it is."""

    steps: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()


NO_CHANGES = Changes()


def cleaned(read: Conversation, section: CleaningSection) -> tuple[Conversation, Changes, str]:
    """A row as it is trained on, what was done to it, and why it is left out ('' where it is not).

    Boilerplate stays: it takes all rows to know it.
    """
    made = clean(read, section)
    found = list(flaws(made.row, section))
    why = next((f"{each.reason}, {each.detail}" for each in found if each.drops), "")
    masked = map_texts(made.row, lambda text: mask_personal(text)[0])
    is_named = masked is not made.row
    if section.privacy == "drop" and is_named:
        why = why or "personal data (data.cleaning.privacy=drop)"
    row = masked if section.privacy == "mask" else made.row
    steps = (*made.changed, *(["privacy"] if row is not made.row else []))
    noted = (*made.noted, *(each.reason for each in found if not each.drops))
    return row, Changes(steps, tuple(changed_lines(read, row)), noted), why


def changed_lines(read: Conversation, row: Conversation) -> Iterator[str]:
    """The lines that differ between a row as it was read and as it is trained on."""
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
    """A line in which nothing hides: characters that show nothing by their numbers, space at its end as ·."""
    bare = line.rstrip(" ")
    line = bare + "·" * (len(line) - len(bare))
    shown = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in line)
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[: SHOWN_CHARS - 1]}…"


def described(changes: Changes, *, colour: bool) -> list[str]:
    """The changes in lines for the terminal; what was left as it is with the option that acts on it."""
    import click

    colours = {"−": "red", "+": "yellow"}
    lines = [f"changed by {', '.join(changes.steps)}:"] if changes.steps else []
    lines += [click.style(line, fg=colours[line[0]]) if colour else line for line in islice(changes.lines, SHOWN_LINES)]
    if len(changes.lines) > SHOWN_LINES:
        lines.append(f"  … {len(changes.lines) - SHOWN_LINES:,} more lines")
    return [*lines, *(f"kept as is: {how_to_act(name)}" for name in changes.noted)]
