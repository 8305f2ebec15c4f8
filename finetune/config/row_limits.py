"""Which part of a row is trained on: its turns, and how many of its tokens."""

from dataclasses import dataclass
from typing import Literal

LongRows = Literal["drop", "cut prompt", "cut"]
Train = Literal["all", "last", "flagged"]


@dataclass(frozen=True)
class RowLimits:
    """Which turns of a row are scored, how many tokens it may have, and what happens to a longer one.

    Without `reasoning_tokens` reasoning is not limited; without `target_tokens` the labels of a pair may be as long as
    its input.
    """

    max_tokens: int
    long_rows: LongRows = "drop"
    reasoning_tokens: int | None = None
    target_tokens: int | None = None
    train: Train = "all"
