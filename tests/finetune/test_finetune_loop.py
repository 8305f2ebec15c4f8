import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.config.schema import Recipe
from finetune.model.loss import Batch, PaddedForward
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import MetricsLog, StepStats
from finetune.tokens.examples import IGNORED, TokenizedExample
from finetune.train import checkpoint as checkpoints
from finetune.train.job import LoopResult
from finetune.train.loop import Loop
from finetune.train.stop_conditions import CallLimits, Interruption
from gladstone.errors import ArtifactError, DataError, UnsupportedError
from tests.families import write_family
from tests.finetune.looped import loop_over
from tests.finetune.resumed import CASES, Case, Subject, load_case, trained


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    work = tmp_path_factory.mktemp("loop")
    return load_case(Case(), write_family("llama3", work / "base"), work)


@pytest.fixture
def subject(loaded: Subject) -> Subject:
    loaded.set_back()
    return loaded


def changed(subject: Subject, **training: Any) -> Recipe:
    """The subject's recipe with other settings of the training."""
    section = subject.recipe.training.model_copy(update=training)
    return subject.recipe.model_copy(update={"training": section})


def ended(loop: Loop) -> LoopResult:
    try:
        return loop.run()
    finally:
        loop.close()


# answers that the training rows never give: training makes them ever less likely
CONTRARY = [TokenizedExample((5, 6, 7, 90 + row), (IGNORED, IGNORED, IGNORED, 90 + row)) for row in range(4)]


def test_a_loss_without_progress_ends_the_training_after_as_many_validations(subject: Subject, tmp_path: Path) -> None:
    recipe = changed(subject, max_steps=10, evaluations=10, patience=2, learning_rate=0.02)
    found = ended(loop_over(subject.trainable, subject.examples, recipe, tmp_path, held_out=CONTRARY))
    assert found.reason == ""
    assert found.history.best is not None
    best_step, best_loss = found.history.best
    assert len(found.history.steps) == best_step + 2 < 10
    assert [step for step, loss in found.history.validation if loss > best_loss][-2:] == [best_step + 1, best_step + 2]


class Snapshots(Callback):
    """Keeps the adapter of every validated step."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.adapters = subject, dict[int, dict[str, Any]]()

    def on_validation_end(self, step: int, loss: float) -> None:
        self.adapters[step] = trained(self.subject)


def test_going_back_to_the_best_step_puts_its_tensors_in_place(subject: Subject, tmp_path: Path) -> None:
    import torch

    recipe = changed(subject, max_steps=8, evaluations=4, checkpoint_steps=1, learning_rate=0.02)
    kept = Snapshots(subject)
    loop = loop_over(subject.trainable, subject.examples, recipe, tmp_path, callbacks=[kept], held_out=CONTRARY)
    history = ended(loop).history
    assert history.best is not None
    best = history.best[0]
    assert best < len(history.steps) == 8
    assert not all(torch.equal(value, trained(subject)[name]) for name, value in kept.adapters[best].items())
    loop.go_back(tmp_path, best)
    assert all(torch.equal(value, trained(subject)[name]) for name, value in kept.adapters[best].items())


class Worsening(PaddedForward):
    """Computes the loss as always for twelve steps of two micro-batches, and ten times as much from then on."""

    computed = 0

    def loss(self, batch: Batch, divisor: int) -> Any:
        self.computed += self._model.training
        return super().loss(batch, divisor) * (1 if self.computed <= 24 else 10)


def test_a_diverging_loss_is_an_error_that_names_the_rows_of_the_last_step(subject: Subject, tmp_path: Path) -> None:
    forward = Worsening(subject.trainable.model, 0, encoder_decoder=False)
    worsening = dataclasses.replace(subject.trainable, forward=forward)
    loop = loop_over(worsening, subject.examples, changed(subject, max_steps=40), tmp_path)
    with subject.trainable.forward.generation_mode(), pytest.raises(DataError) as caught:
        ended(loop)
    assert re.fullmatch(
        r"the loss diverged: \d\.\d\d nats in the first 10 steps, \d+\.\d\d in those up to step \d+, where guessing "
        r"gives 6\.\d\d\. Lower training\.learning_rate\. The last step's rows: rows\.jsonl:\d+(, rows\.jsonl:\d+)*\.",
        str(caught.value),
    )


class Detached(PaddedForward):
    """Computes the loss as always, but cut off from the adapter."""

    def loss(self, batch: Batch, divisor: int) -> Any:
        return super().loss(batch, divisor).detach()


def test_a_loss_that_the_adapter_does_not_reach_is_an_error_at_the_first_step(subject: Subject, tmp_path: Path) -> None:
    cut_off = dataclasses.replace(
        subject.trainable, forward=Detached(subject.trainable.model, 0, encoder_decoder=False)
    )
    loop = loop_over(cut_off, subject.examples, subject.recipe, tmp_path)
    with subject.trainable.forward.generation_mode(), pytest.raises(DataError, match=r"step 1 has no gradient"):
        ended(loop)
    assert loop.history.steps == []


def test_a_gradient_of_zero_is_an_error_at_the_first_step(tmp_path: Path) -> None:
    queries = load_case(
        Case(lora={"targets": ["q_proj", "k_proj"]}), write_family("llama3", tmp_path / "base"), tmp_path
    )
    # of a single position attention computes the same whatever its query and key are
    examples = [TokenizedExample((5, token), (IGNORED, token)) for token in (6, 7, 8, 9)]
    loop = loop_over(queries.trainable, examples, queries.recipe, tmp_path)
    with pytest.raises(DataError, match=r"step 1 has no gradient: nothing would be learnt\."):
        ended(loop)
    assert loop.history.steps == []


def test_a_row_without_a_scored_token_among_others_is_no_error(subject: Subject, tmp_path: Path) -> None:
    silent = TokenizedExample((5, 6, 7), (IGNORED,) * 3)
    examples = [*subject.examples[:3], silent]
    found = ended(loop_over(subject.trainable, examples, changed(subject, max_steps=2), tmp_path))
    assert len(found.history.steps) == 2


class Raising(Callback):
    def on_step_end(self, stats: StepStats, total: int) -> None:
        if stats.step == 2:
            raise RuntimeError("enough")


def test_an_exception_of_a_callback_ends_the_training_after_a_checkpoint(subject: Subject, tmp_path: Path) -> None:
    loop = loop_over(subject.trainable, subject.examples, subject.recipe, tmp_path, callbacks=[Raising()])
    with pytest.raises(RuntimeError, match="enough"):
        ended(loop)
    found = checkpoints.newest_whole(tmp_path, pytest.fail)
    assert found is not None
    assert found[0].step == 2


def test_a_checkpoint_of_another_adapter_is_refused(subject: Subject, tmp_path: Path) -> None:
    recipe = changed(subject, max_steps=1)
    ended(loop_over(subject.trainable, subject.examples, recipe, tmp_path))
    found = checkpoints.newest_whole(tmp_path, pytest.fail)
    assert found is not None
    name = next(iter(found[0].trained))
    for trained_tensors in (
        {key: value for key, value in found[0].trained.items() if key != name},
        found[0].trained | {name: found[0].trained[name][:1]},
    ):
        other = dataclasses.replace(found[0], trained=trained_tensors)
        with pytest.raises(ArtifactError, match="the checkpoint is of an adapter with other layers"):
            loop_over(subject.trainable, subject.examples, recipe, tmp_path, checkpoint=other)


@pytest.mark.parametrize("part", ["optimizer", "random"])
def test_a_checkpoint_that_does_not_fit_is_refused(subject: Subject, tmp_path: Path, part: str) -> None:
    import torch

    recipe = changed(subject, max_steps=1)
    ended(loop_over(subject.trainable, subject.examples, recipe, tmp_path))
    found = checkpoints.newest_whole(tmp_path, pytest.fail)
    assert found is not None
    spoilt: dict[str, Any] = {
        "optimizer": {"state": {}, "param_groups": []},
        "random": {"cpu": torch.zeros(3, dtype=torch.uint8)},
    }
    other = dataclasses.replace(found[0], **{part: spoilt[part]})
    with pytest.raises(ArtifactError, match="step 1's checkpoint does not fit: "):
        loop_over(subject.trainable, subject.examples, recipe, tmp_path, checkpoint=other)


def test_a_metrics_log_on_a_full_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics_log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        metrics_log.append("validation", 1, loss_nats_per_token=2.0)
    assert metrics_log.history.validation == []
    assert metrics_log.lines == b""
    metrics_log.close()
    with pytest.raises(ArtifactError, match="No space left on device"):  # and the file is closed again
        MetricsLog(tmp_path / "metrics.jsonl", b'{"kind": "validation", "step": 1, "loss_nats_per_token": 2.0}\n')


def test_a_metrics_log_continues_behind_the_lines_of_a_checkpoint(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path / "metrics.jsonl")
    first.append("sample", 1, prompt="p", text="a line\u2028with a separator")
    first.append("validation", 1, loss_nats_per_token=2.0)
    kept = first.lines
    first.append("validation", 2, loss_nats_per_token=9.0)
    first.close()
    second = MetricsLog(tmp_path / "metrics.jsonl", kept)
    second.append("validation", 2, loss_nats_per_token=1.0)
    second.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2]
    assert second.history.validation == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("limits", "made", "expected"),
    [
        (CallLimits(), (9, 9, 9.0), ""),
        (CallLimits(max_steps=3), (2, 0, 0.0), ""),
        (CallLimits(max_steps=3), (3, 0, 0.0), "--max-steps 3"),
        (CallLimits(max_tokens=100), (0, 99, 0.0), ""),
        (CallLimits(max_tokens=100), (0, 100, 0.0), "--max-tokens 100"),
        (CallLimits(max_hours=1.0), (0, 0, 3000.0), ""),
        (CallLimits(max_hours=1.0), (0, 0, 3601.0), "--max-hours 1"),
        (CallLimits(max_hours=0.5, max_steps=1), (1, 0, 9999.0), "--max-steps 1"),
    ],
)
def test_a_limit_stops_before_the_step_that_would_pass_it(
    limits: CallLimits, made: tuple[int, int, float], expected: str
) -> None:
    begun_now = dataclasses.replace(limits, begin_s=time.monotonic())  # they were made when the tests were collected
    assert begun_now.reached(*made) == expected


def test_without_a_time_limit_there_is_always_enough_time(subject: Subject, tmp_path: Path) -> None:
    assert not CallLimits().out_of_time(1e12)
    assert CallLimits().time_name == ""
    assert Interruption().name == ""


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd", "adamw_torch"])
def test_the_optimizer_is_the_one_that_was_asked_for(subject: Subject, name: str) -> None:
    from finetune.model.optimizer import make_optimizer

    made = make_optimizer(subject.trainable.model, changed(subject, optimizer=name).training)
    kinds = {
        "adamw_8bit": "AdamW", "paged_adamw_8bit": "AdamW", "lion_8bit": "Lion", "adafactor": "Adafactor", "sgd": "SGD",
        "adamw_torch": "AdamW",
    }  # fmt: skip
    assert type(made).__name__ == kinds[name]
    assert type(made).__module__.startswith("bitsandbytes") == ("8bit" in name)
    if "8bit" in name:
        assert made.args.optim_bits == 8


def test_an_optimizer_whose_package_is_not_there_is_refused(subject: Subject) -> None:
    from finetune.model.optimizer import make_optimizer

    with pytest.raises(
        UnsupportedError, match=r"training\.optimizer: schedule_free_adamw does not work here: .*install"
    ):
        make_optimizer(subject.trainable.model, changed(subject, optimizer="schedule_free_adamw").training)


def test_the_table_of_broken_trainings_has_every_optimizer_of_a_recipe() -> None:
    from finetune.config.load import load_recipe, recipe_names
    from finetune.config.schema import TrainingSection

    used = {load_recipe(name, []).training.optimizer for name in recipe_names()}
    tried = {case.training.get("optimizer", TrainingSection().optimizer) for case in CASES.values()}
    assert {each.removeprefix("paged_") for each in used} <= tried
