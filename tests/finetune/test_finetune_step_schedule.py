from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from finetune.config.schema import TrainingSection
from finetune.model.loss import Batch, Forward
from finetune.sizing.memory import MicroBatchShape
from finetune.sizing.step_plan import make_plan, rows_of
from finetune.tokens.examples import Example
from finetune.tokens.step_schedule import StepSchedule
from tests.families import write_family
from tests.finetune.looped import loop_over
from tests.finetune.resumed import CASES, load_case


def schedule(rows: int, padded: bool = False, **training: Any) -> StepSchedule:
    return StepSchedule(TrainingSection(**training), [10] * rows, padded=padded)


def test_validations_are_spread_evenly_and_the_last_step_has_one() -> None:
    nine = schedule(9, batch_size=1, evaluations=4)
    assert [step for step in range(1, 10) if nine.validates_after(step)] == [3, 5, 7, 9]
    two = schedule(2, batch_size=1, evaluations=4)
    assert [step for step in range(1, 3) if two.validates_after(step)] == [1, 2]
    assert (nine.validations, two.validations) == (4, 2)


def test_rows_and_tokens_of_a_run_are_those_of_its_steps() -> None:
    made = schedule(10, batch_size=4, max_steps=4)
    assert (made.steps_per_epoch, made.steps, made.rows_trained, made.epochs) == (3, 4, 14, 1.4)
    assert made.micro_batch_tokens == 40
    assert made.tokens_trained == pytest.approx(100 * 4 / 3)


@dataclass
class Recording:
    """Computes as `forward` does, and keeps every batch that is made, with whether it is one of training."""

    forward: Forward
    model: Any
    made: list[tuple[bool, Batch]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.padded = self.forward.padded

    def batch(self, examples: Sequence[Example]) -> Batch:
        self.made.append((self.model.training, batch := self.forward.batch(examples)))
        return batch

    def loss(self, batch: Batch, divisor: int) -> Any:
        return self.forward.loss(batch, divisor)

    def generation_mode(self) -> Any:
        return self.forward.generation_mode()

    def batches(self, *, training: bool) -> Iterator[tuple[int, int]]:
        """What was computed: computed_tokens and scored tokens of each micro-batch."""
        return ((batch.computed_tokens, batch.target_tokens) for wanted, batch in self.made if wanted is training)


@pytest.mark.parametrize("name", ["LoRA dropout 0.1", "T5 (padded, grouped by length), dropout 0.1"])
def test_the_plan_of_an_estimate_is_what_a_run_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    subject = load_case(case, write_family(case.family, tmp_path / "base"), tmp_path)
    recording = Recording(subject.trainable.forward, subject.trainable.model)
    loop = loop_over(replace(subject.trainable, forward=recording), subject.examples, subject.recipe, tmp_path)
    history = loop.run().history
    loop.close()

    rows = rows_of(subject.examples, subject.recipe.lora)
    plan = make_plan(subject.recipe, {"train": rows, "validation": rows, "test": []}, padded=recording.padded)
    assert plan.planned_steps == plan.steps == len(history.steps) == loop.total
    assert planned(plan.training) == list(recording.batches(training=True))
    assert planned(plan.validation) * plan.evaluations == list(recording.batches(training=False))
    assert plan.evaluations == len(history.validation)
    assert plan.rows_trained == sum(batch.rows for batch in plan.training)


def planned(batches: Sequence[MicroBatchShape]) -> list[tuple[int, int]]:
    return [(batch.total, batch.scored_tokens) for batch in batches]
