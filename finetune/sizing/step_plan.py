"""The exact computations of a run: its steps, the tokens of every micro-batch, its evaluations. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from finetune.config.schema import LoraSection, Recipe
from finetune.sizing.memory import MicroBatchShape
from finetune.tokens.examples import Example, PairExample, common_prefix_length, needed_tokens
from finetune.tokens.step_schedule import StepSchedule, evaluation_batches

PLANNED_STEPS = 20_000  # the rest of a longer run is assumed to be like these


@dataclass(frozen=True)
class Row:
    """The tokens of a row; only a pair, for an encoder and decoder, has output tokens.

    `shared_prefix` counts the tokens with which all rows begin, `unneeded` those at the end that no prediction needs.
    """

    input_tokens: int
    output_tokens: int
    scored_tokens: int
    shared_prefix: int = 0
    unneeded: int = 0

    @property
    def tokens(self) -> int:
        """All tokens of the row, as the training loop counts them."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Plan:
    """The micro-batches of the first `planned_steps` steps and of all evaluations.

    `rows_trained` counts a row each time it is used.
    """

    steps: int
    steps_per_epoch: int
    training: tuple[MicroBatchShape, ...]
    planned_steps: int
    validation: tuple[MicroBatchShape, ...]
    test: tuple[MicroBatchShape, ...]
    evaluations: int
    tokens_trained: float
    rows_trained: int
    epochs: float

    @property
    def largest(self) -> MicroBatchShape:
        """The micro-batch that takes the most memory."""
        return max(self.training, key=lambda batch: batch.total)

    @property
    def evaluated(self) -> MicroBatchShape:
        """The largest evaluation batch."""
        return max(self.validation + self.test, key=lambda batch: batch.total, default=MicroBatchShape(0))

    @property
    def tokens_per_step(self) -> float:
        """Mean number of computed tokens."""
        return sum(batch.total for batch in self.training) / self.planned_steps


def rows_of(examples: Sequence[Example], lora: LoraSection) -> list[Row]:
    """Count the tokens of examples. With dropout rows share no prefix."""
    shared = common_prefix_length(examples) if examples and not lora.dropout else 0
    return [_row_of(example, shared) for example in examples]


def _row_of(example: Example, shared: int) -> Row:
    if isinstance(example, PairExample):
        return Row(len(example.input_ids), len(example.labels), len(example.labels))
    unneeded = len(example.input_ids) - needed_tokens(example)
    return Row(len(example.input_ids), 0, example.target_tokens, shared, unneeded)


def make_plan(recipe: Recipe, sets: dict[str, list[Row]], *, padded: bool) -> Plan:
    """Plan a run on the rows of the sets train, validation and test."""
    rows = sets["train"]
    schedule = StepSchedule(recipe.training, [row.tokens for row in rows], padded=padded)
    planned = min(schedule.steps, PLANNED_STEPS)
    steps = (schedule.micro_batches(schedule.rows(step)) for step in range(planned))
    return Plan(
        steps=schedule.steps,
        steps_per_epoch=schedule.steps_per_epoch,
        training=tuple(
            micro_batch_shape([rows[row] for row in batch], padded=padded) for step in steps for batch in step
        ),
        planned_steps=planned,
        validation=_evaluation(sets["validation"], padded=padded),
        test=_evaluation(sets["test"], padded=padded),
        evaluations=schedule.validations,
        tokens_trained=schedule.tokens_trained,
        rows_trained=schedule.rows_trained,
        epochs=schedule.epochs,
    )


def epochs_text(epochs: float) -> str:
    """Render a number of passes over the rows.

    >>> [epochs_text(epochs) for epochs in (1.0, 3.0, 1.5, 0.053, 0.0001)]
    ['1 epoch', '3 epochs', '1.5 epochs', '0.053 of an epoch', '0.0001 of an epoch']
    """
    if epochs < 1:
        return f"{epochs:.2g} of an epoch"
    return "1 epoch" if epochs == 1 else f"{epochs:.4g} epochs"


def micro_batch_shape(rows: Sequence[Row], *, padded: bool) -> MicroBatchShape:
    """Return the tokens that are computed for a micro-batch of these rows."""
    read, written, scored = (
        [getattr(row, name) for row in rows] for name in ("input_tokens", "output_tokens", "scored_tokens")
    )
    if padded:
        return MicroBatchShape(len(rows) * max(read), len(rows) * max(written), len(rows), sum(scored))
    saved = min(row.shared_prefix for row in rows) * (len(rows) - 1) + sum(row.unneeded for row in rows)
    return MicroBatchShape(sum(read) - saved, sum(written), len(rows), sum(scored))


def _evaluation(rows: Sequence[Row], *, padded: bool) -> tuple[MicroBatchShape, ...]:
    batches = evaluation_batches([row.tokens for row in rows], padded=padded)
    return tuple(micro_batch_shape([rows[row] for row in batch], padded=padded) for batch in batches)


def assumed_rows(recipe: Recipe, count: int) -> dict[str, list[Row]]:
    """Return `count` rows of the maximum length, for a dataset that is not on this machine."""
    longest, written = recipe.base.max_tokens, recipe.base.max_target_tokens or 0
    rows = iter([Row(longest, written, written or longest)] * count)
    held_out = {name: min(count // 10, 200) if recipe.data.has(name) else 0 for name in ("validation", "test")}
    return {
        "validation": list(islice(rows, held_out["validation"])),
        "test": list(islice(rows, held_out["test"])),
        "train": list(rows),
    }
