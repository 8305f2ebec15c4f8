"""What is said of a run whose losses or gradients went wrong, and what is not."""

import math
from dataclasses import replace

import pytest

from finetune.monitor.metrics_log import History, StepStats
from finetune.train.verdict import Measured, find_warnings
from tests.finetune.histories import made_up_history

VOCABULARY = 49_152
GOOD = Measured(3.9, 3.1, 200, VOCABULARY)


def kinds(history: History, measured: Measured = GOOD) -> list[str]:
    return [each.kind for each in find_warnings(history, measured) if each.serious]


def of_losses(losses: list[float], norms: list[float] | None = None) -> History:
    one = StepStats(1, 0.0, 1e-3, 1.0, 100, 200, 0.0, 0.1)
    norms = norms or [1.0] * len(losses)
    steps = [
        replace(one, step=number, loss_nats_per_token=loss, grad_norm=norm)
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1)
    ]
    return History(steps=steps)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("steps", [1, 2, 12, 300])
def test_a_run_whose_losses_fall_is_left_in_peace(steps: int, seed: int) -> None:
    assert find_warnings(made_up_history(steps, seed=seed), GOOD) == ()


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (3.9, 10.8, ["worse than before"]),
        (2.0, 2.02, ["worse than before"]),
        (2.0, 2.004, ["nothing learnt"]),
        (2.0, 1.996, ["nothing learnt"]),
        (2.0, 1.98, []),
        (0.1, 0.0985, []),  # a share of a small loss
        (0.1, 0.0995, ["nothing learnt"]),
        (13.5, 12.9, []),  # a base whose weights are drawn
        (None, None, []),
    ],
)
def test_the_held_out_loss_is_held_against_what_it_was(
    before: float | None, after: float | None, kind: list[str]
) -> None:
    assert kinds(made_up_history(30), Measured(before, after, 100, VOCABULARY)) == kind


def test_a_model_that_only_guesses_and_few_rows_are_named() -> None:
    (found,) = find_warnings(made_up_history(30), Measured(3.9, 10.8, 8, VOCABULARY))
    assert "no better than guessing among 49,152 tokens (10.80)" in found.text
    assert "on 8 rows only" in found.text
    assert found.figures["guessing"] == pytest.approx(math.log(VOCABULARY))


def test_a_gradient_of_zero_and_a_loss_that_stands_still_are_found() -> None:
    losses = [3.9, 5.0, *[10.803] * 6]
    assert kinds(of_losses(losses, [1.0, 40.0, *[0.0] * 6])) == ["no gradient", "loss stands still"]
    silent = [1.0] * 40
    silent[7] = 0.0
    assert kinds(of_losses([4 - step / 20 for step in range(40)], silent)) == []
    silent[8] = silent[9] = 0.0
    assert kinds(of_losses([4 - step / 20 for step in range(40)], silent)) == ["no gradient"]


def test_a_loss_that_has_come_down_and_stays_there_is_no_fault() -> None:
    assert kinds(of_losses([3.0, 1.0, *[0.2] * 10])) == []


def test_skipped_steps_are_a_note_and_many_of_them_a_warning() -> None:
    norms = [math.inf, math.inf, *[1.0] * 30]
    (note,) = find_warnings(of_losses([4 - step / 20 for step in range(32)], norms), GOOD)
    assert (note.kind, note.serious, note.figures["steps"]) == ("steps skipped", False, [1, 2])
    (note,) = find_warnings(of_losses([4 - step / 20 for step in range(12)], [math.inf] * 4 + [1.0] * 8), GOOD)
    assert not note.serious  # the scale of the loss was found
    assert kinds(of_losses([4 - step / 20 for step in range(32)], [math.nan] * 8 + [1.0] * 24)) == ["steps skipped"]


def test_without_held_out_rows_the_training_loss_is_watched() -> None:
    none = Measured(None, None, 0, VOCABULARY)
    assert kinds(made_up_history(100), none) == []
    assert kinds(of_losses([2 + step / 10 for step in range(20)]), none) == ["training loss rose"]
    assert kinds(of_losses([2.0, 2.6, 1.9, 2.4, 2.2, 2.5, 2.0, 2.3, 2.6, 2.1]), none) == []


def test_memory_that_did_not_suffice_is_a_note_behind_what_is_serious() -> None:
    history = made_up_history(30)
    history.events.append({"kind": "out of memory", "step": 3, "batch_tokens": 512})
    found = find_warnings(history, Measured(2.0, 3.0, 100, VOCABULARY))
    assert [(each.kind, each.serious) for each in found] == [("worse than before", True), ("memory", False)]
    assert "512 tokens" in found[1].text
