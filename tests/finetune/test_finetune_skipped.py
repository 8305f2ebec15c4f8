"""Steps in float16 whose gradient is not finite: skipped, counted, and too many in a row."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.model.loss import Batch, PaddedForward
from finetune.monitor.metrics_log import read_history
from finetune.train import checkpoint as checkpoints
from finetune.train.job import LoopResult
from finetune.train.stop_conditions import CallLimits
from gladstone.errors import DataError
from tests.families import write_family
from tests.finetune.looped import loop_over
from tests.finetune.resumed import Case, Subject, load_case, trained


class Overflowing(PaddedForward):
    """Computes the loss in float16 with a gradient that is not finite in some steps, counted from 1."""

    times = 1.0

    def __init__(self, model: Any, steps: range = range(0), *, loss_too: bool = False) -> None:
        super().__init__(model, 0, encoder_decoder=False)
        self.steps, self.loss_too, self.computed = steps, loss_too, 0

    def loss(self, batch: Batch, divisor: int) -> Any:
        loss = super().loss(batch, divisor) * self.times
        self.computed += loss.requires_grad
        if loss.requires_grad and self.computed in self.steps:  # one micro-batch in a step
            loss.register_hook(lambda gradient: gradient * math.nan)
            loss = loss * math.nan if self.loss_too else loss
        return loss


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    work = tmp_path_factory.mktemp("skipped")
    case = Case(
        lora={"dropout": 0.1},
        training={"batch_size": 4, "accumulation": 1, "max_steps": 16, "evaluations": 2, "checkpoint_steps": 4},
    )
    subject = load_case(case, write_family("llama3", work / "base"), work)
    with subject.trainable.forward.generation_mode():
        for parameter in subject.trainable.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.half()
        yield subject


@pytest.fixture
def subject(loaded: Subject) -> Subject:
    loaded.set_back()
    return loaded


def run(subject: Subject, folder: Path, steps: range = range(0), **options: Any) -> tuple[LoopResult, bytes]:
    """Train with gradients that overflow in `steps`; the metrics as their file holds them."""
    forward = Overflowing(subject.trainable.model, steps, loss_too=options.pop("loss_too", False))
    forward.times = options.pop("times", 1.0)
    trainable = dataclasses.replace(subject.trainable, forward=forward)
    assert trainable.dtype == "float16"
    loop = loop_over(trainable, subject.examples, subject.recipe, folder, **options)
    try:
        return loop.run(), (folder / "metrics.jsonl").read_bytes()
    finally:
        loop.close()


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_a_scale_that_is_too_high_at_the_start_costs_a_few_steps(subject: Subject, tmp_path: Path) -> None:
    found, written = run(subject, tmp_path, times=8.0)
    steps = found.history.steps
    skipped = [stats.step for stats in steps if stats.skipped]
    assert len(steps) == 16
    assert skipped == list(range(1, len(skipped) + 1))
    assert 0 < len(skipped) < 8
    events = [event for event in found.history.events if event["kind"] == "step skipped"]
    assert [event["step"] for event in events] == skipped
    assert [event["loss_scale"] for event in events] == [65536 / 2**number for number in range(len(skipped))]
    lines = [strict(line) for line in written.decode().splitlines()]
    assert {line["grad_norm"] for line in lines if line.get("step") == 1} <= {"NaN", "Infinity"}
    assert steps[-1].loss_nats_per_token < steps[0].loss_nats_per_token


@pytest.mark.parametrize("loss_too", [False, True], ids=["gradient", "loss"])
def test_ten_skipped_steps_in_a_row_end_the_run_and_the_last_good_one_is_resumed(
    subject: Subject, tmp_path: Path, *, loss_too: bool
) -> None:
    whole, _ = run(subject, tmp_path / "whole")
    adapter = trained(subject)
    subject.set_back()
    with pytest.raises(DataError) as caught:
        run(subject, tmp_path / "broken", range(7, 100), loss_too=loss_too)
    assert re.fullmatch(
        r"10 steps in a row were skipped, 7 to 16: their gradient is not finite \(nan\), though the scale of the loss "
        r"was lowered from 65,536 to 128\. The checkpoint of step 6 is kept, and --resume goes on after it\. Numbers "
        r"in float16 end at 65,504: .* bfloat16 .*, lower training\.learning_rate in a new run, or look at the rows of "
        r"these steps: rows\.jsonl:\d+(, rows\.jsonl:\d+){7} and 2 more\.",
        str(caught.value),
    )
    history = read_history(tmp_path / "broken" / "metrics.jsonl")
    assert [stats.step for stats in history.steps if stats.skipped] == list(range(7, 17))
    saved = checkpoints.newest_whole(tmp_path / "broken", pytest.fail)
    assert saved is not None
    assert saved[0].step == 6
    subject.set_back(spoilt=True)
    resumed, _ = run(subject, tmp_path / "broken", checkpoint=saved[0])
    assert [(stats.loss_nats_per_token, stats.grad_norm) for stats in resumed.history.steps] == [
        (stats.loss_nats_per_token, stats.grad_norm) for stats in whole.history.steps
    ]
    assert all(bool((value == adapter[name]).all()) for name, value in trained(subject).items())


def test_skips_that_are_not_in_a_row_do_not_end_the_run(subject: Subject, tmp_path: Path) -> None:
    found, _ = run(subject, tmp_path, range(3, 12))
    assert [stats.step for stats in found.history.steps if stats.skipped] == list(range(3, 12))
    assert found.reason == ""


def test_skips_before_and_after_a_resume_are_counted_together(subject: Subject, tmp_path: Path) -> None:
    run(subject, tmp_path, range(3, 100), limits=CallLimits(max_steps=8))
    saved = checkpoints.newest_whole(tmp_path, pytest.fail)
    assert saved is not None
    with pytest.raises(DataError, match=r"10 steps in a row were skipped, 3 to 12: "):
        run(subject, tmp_path, range(1, 100), checkpoint=saved[0])


def test_a_run_that_never_learns_anything_leaves_no_checkpoint(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10 steps in a row were skipped, 1 to 10: .* Nothing was learnt\."):
        run(subject, tmp_path, range(1, 100))
    assert checkpoints.saved(tmp_path) == []


def test_a_validation_that_is_not_finite_names_its_rows(subject: Subject, tmp_path: Path) -> None:
    import torch

    class Spoilt(Overflowing):
        def loss(self, batch: Batch, divisor: int) -> Any:
            return super().loss(batch, divisor) * (1 if torch.is_grad_enabled() else math.nan)

    forward = Spoilt(subject.trainable.model)
    trainable = dataclasses.replace(subject.trainable, forward=forward)
    loop = loop_over(trainable, subject.examples, subject.recipe, tmp_path)
    with pytest.raises(DataError, match=r"the held-out loss is nan: .* 10 rows\. .* bfloat16\."):
        loop.run()
    loop.close()
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["step-00000004", "step-00000008"]
