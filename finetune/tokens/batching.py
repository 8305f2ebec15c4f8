"""Which rows make which optimizer step, and how a step is cut into micro-batches that memory holds. No torch.

The order is a function of the seed, the epoch and the lengths alone: a run that goes on at step 700 computes step 700's
rows, it does not replay the first 700.
"""

import math
import random
from collections.abc import Sequence

MEGABATCH_STEPS = 50  # rows of this many steps are sorted together: little padding, and still a mixed order


class Order:
    """The rows of every optimizer step; an epoch uses each row once, its last step may have fewer."""

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int, *, grouped: bool) -> None:
        """`lengths` in tokens; `grouped`: rows of similar length make a step."""
        self._lengths, self._rows_per_step, self._seed, self._grouped = lengths, rows_per_step, seed, grouped
        self._epoch = -1
        self._steps: list[tuple[int, ...]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which each row is used once."""
        return math.ceil(len(self._lengths) / self._rows_per_step)

    def rows(self, step: int) -> tuple[int, ...]:
        """Indices of the rows of the optimizer step `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._plan(epoch)
        return self._steps[within]

    def rows_seen(self, steps: int) -> int:
        """How many rows so many steps from the first train; a row counts each time."""
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
    """Rows in as few batches as hold at most `budget_tokens`, padding included if `padded`; one row at least.

    Longest first, so that memory that does not suffice shows at once, and with rows of similar length together.
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
