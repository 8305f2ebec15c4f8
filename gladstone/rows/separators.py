"""Detects the separator of a table: the one that gives the header and the records the same number of fields."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 100  # records
_SEP_LINE = re.compile(r"\ufeff?\"?sep=(.)\"?\r?(?:\n|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Separator:
    """The character `char`, `lines` to skip before the header, and the `share` of records that match the header."""

    char: str
    lines: int = 0
    share: float = 0.0
    certain: bool = False

    @property
    def name(self) -> str:
        """The separator in words."""
        return SEPARATORS.get(self.char, repr(self.char))


def find_separator(head: str, usual: str, *, whole: bool) -> Separator:
    """Return the separator of a table that begins with `head`; `usual` if no other fits better.

    It is `certain` if the header has at least two plausible names, and at least two records and 90 % of them match it.
    """
    line = _SEP_LINE.match(head)
    if line:
        return Separator(line[1], 1, 1.0, certain=True)
    if not whole:  # the last line may be truncated
        head = head[: head.rfind("\n") + 1] or head
    measured = [_measure(head, char) for char in sorted(SEPARATORS, key=lambda char: char != usual)]
    best = max(measured, key=lambda separator: separator.share)  # of equals the first, which is the usual one
    return best if best.share > 0 else Separator(usual)


def _measure(head: str, char: str) -> Separator:
    records = list(islice(_records(head, char), LOOKED_AT + 1))
    if not records or len(records[0]) < 2:
        return Separator(char)
    header, others = records[0], [record for record in records[1:] if record]
    fitting = sum(len(record) == len(header) for record in others)
    share = (fitting + 1) / (len(others) + 1)
    plausible = len(set(header)) == len(header) and all(0 < len(name.strip()) <= 60 for name in header)
    return Separator(char, 0, share, certain=plausible and len(others) >= 2 and fitting * 10 >= len(others) * 9)


def _records(head: str, char: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(head.lstrip("\ufeff"), newline="\n"), delimiter=char)
    except csv.Error:
        return
