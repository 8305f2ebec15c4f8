"""The steps of a run: their rows, how each is cut into micro-batches, and when the run validates. No torch.

The training loop and the estimate both take their steps from here, so a plan is what a run does.
"""

from collections.abc import Sequence
from functools import cached_property

from finetune.config.schema import TrainingSection
from finetune.tokens.batching import BatchSampler, micro_batches

EVALUATION_BATCH_TOKENS = 4096  # on a CPU larger batches gain nothing


class StepSchedule:
    """The optimizer steps of one run; `micro_batch_tokens` is the size at which its micro-batches begin."""

    def __init__(self, training: TrainingSection, lengths: Sequence[int], *, padded: bool) -> None:
        """`lengths` are the tokens of each training row; `padded`: rows are padded to the longest of their batch."""
        grouped = padded if training.group_by_length == "auto" else training.group_by_length
        self._order = BatchSampler(lengths, training.rows_per_step, training.seed, grouped=grouped)
        self._lengths, self._padded, self._evaluations = lengths, padded, training.evaluations
        self.steps_per_epoch = self._order.steps_per_epoch
        self.steps = training.total_steps(self.steps_per_epoch)
        self.micro_batch_tokens = training.batch_tokens or training.batch_size * max(lengths)

    @cached_property
    def rows_trained(self) -> int:
        """Rows of the whole run; a row counts each time it is trained on."""
        return self._order.rows_seen(self.steps)

    @property
    def epochs(self) -> float:
        """Passes over the training rows."""
        return self.rows_trained / len(self._lengths)

    @property
    def tokens_trained(self) -> float:
        """Tokens of the whole run, padding not counted."""
        return sum(self._lengths) * self.steps / self.steps_per_epoch

    def rows(self, step: int) -> tuple[int, ...]:
        """Indices of the rows of the optimizer step `step`, counted from 0."""
        return self._order.rows(step)

    def micro_batches(self, rows: Sequence[int], tokens: int | None = None) -> list[tuple[int, ...]]:
        """The rows as micro-batches of at most `tokens` tokens, by default `micro_batch_tokens`; one row at least."""
        most = self.micro_batch_tokens if tokens is None else tokens
        return micro_batches(rows, self._lengths, most, padded=self._padded)

    def validations_until(self, step: int) -> int:
        """How many validations are due by the end of optimizer step `step`, counted from 1.

        They are spread evenly and end with the last step; a run never has more of them than steps.
        """
        return step * min(self._evaluations, self.steps) // self.steps

    def validates_after(self, step: int) -> bool:
        """True if a validation is due right after optimizer step `step`, counted from 1."""
        return self.validations_until(step) > self.validations_until(step - 1)

    @property
    def validations(self) -> int:
        """Validations of the whole run."""
        return self.validations_until(self.steps)


def evaluation_batches(lengths: Sequence[int], *, padded: bool) -> list[tuple[int, ...]]:
    """All rows, as the batches in which a loss is evaluated."""
    return micro_batches(range(len(lengths)), lengths, EVALUATION_BATCH_TOKENS, padded=padded)
