"""Assigns rows to optimizer steps, and splits a step into micro-batches that fit in memory. No torch.

The order depends on the seed, the epoch and the lengths alone: a run that resumes at step 700 computes the rows of step
700 without replaying the first 700 steps.
"""

import math
import random
from collections.abc import Sequence

MEGABATCH_STEPS = 50  # rows of this many steps are sorted together, which limits padding and keeps the order mixed


class BatchSampler:
    """The rows of every optimizer step; an epoch uses each row once, and its last step may have fewer rows."""

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int, *, grouped: bool) -> None:
        """`lengths` in tokens; `grouped`: rows of similar length share a step."""
        self._lengths, self._rows_per_step, self._seed, self._grouped = lengths, rows_per_step, seed, grouped
        self._epoch = -1
        self._steps: list[tuple[int, ...]] = []

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps that use each row once."""
        return math.ceil(len(self._lengths) / self._rows_per_step)

    def rows(self, step: int) -> tuple[int, ...]:
        """Return the row indices of the optimizer step `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._plan(epoch)
        return self._steps[within]

    def rows_seen(self, steps: int) -> int:
        """Count the rows that the first `steps` steps train; repeated rows count each time."""
        whole, rest = divmod(steps, self.steps_per_epoch)
        return whole * len(self._lengths) + sum(len(self.rows(steps - rest + step)) for step in range(rest))

    def _plan(self, epoch: int) -> list[tuple[int, ...]]:
        chance = random.Random(f"{self._seed}:{epoch}")  # noqa: S311 - an order of rows, no secret
        rows = list(range(len(self._lengths)))
        chance.shuffle(rows)
        size = self._rows_per_step
        if self._grouped:
            mega = size * MEGABATCH_STEPS
            rows = [
                row
                for begin in range(0, len(rows), mega)
                for row in sorted(rows[begin : begin + mega], key=lambda row: -self._lengths[row])
            ]
        steps = [tuple(rows[begin : begin + size]) for begin in range(0, len(rows), size)]
        if self._grouped:
            chance.shuffle(steps)
        return steps


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], budget_tokens: int, *, padded: bool
) -> list[tuple[int, ...]]:
    """Pack rows into as few batches as possible with at most `budget_tokens` each, counting padding if `padded`.

    A batch has at least one row. The longest rows come first, so that insufficient memory shows at once, and rows of
    similar length share a batch.
    """
    batches: list[list[int]] = []
    room = 0
    for row in sorted(rows, key=lambda row: -lengths[row]):
        taken = lengths[batches[-1][0]] if batches and padded else lengths[row]
        if batches and room >= taken:
            batches[-1].append(row)
            room -= taken
        else:
            batches.append([row])
            room = budget_tokens - lengths[row]
    return [tuple(batch) for batch in batches]
