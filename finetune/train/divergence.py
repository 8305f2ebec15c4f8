"""Steps from which a training does not recover: a loss that is not finite, no gradient, a loss that diverges."""

import math
from collections.abc import Callable, Sequence

from finetune.monitor.metrics_log import StepStats
from gladstone.errors import DataError

COMPARED_STEPS = 10  # the mean losses of the first and of the last ones are compared
NO_GRADIENT = "step 1 has no gradient: nothing would be learnt. Do the layers of lora.targets reach the answers?"


def check_step(step: int, loss: float, grad_norm: float, name_rows: Callable[[], str], *, scaled: bool) -> None:
    """Raise DataError if the loss or gradient of a step, counted from 1, is not finite, or step 1 has no gradient.

    `name_rows` returns the names of the step's rows. With `scaled` gradients the scaler skips a step that overflows.
    """
    if step == 1 and grad_norm == 0:
        raise DataError(NO_GRADIENT)
    for name, value in (("loss", loss), ("gradient", 0.0 if scaled else grad_norm)):
        if not math.isfinite(value):
            raise DataError(
                f"the {name} of step {step} is {value}: lower training.learning_rate, or look at its rows: "
                f"{name_rows()}."
            )


def check_divergence(steps: Sequence[StepStats], vocabulary: int, name_rows: Callable[[], str]) -> None:
    """Raise DataError if the loss has risen far above its start and above that of guessing among all tokens.

    `name_rows` returns the names of the last step's rows.
    """
    if len(steps) < 2 * COMPARED_STEPS:
        return
    early, late = (
        sum(stats.loss_nats_per_token for stats in part) / COMPARED_STEPS
        for part in (steps[:COMPARED_STEPS], steps[-COMPARED_STEPS:])
    )
    guessing = math.log(vocabulary)
    if late > max(guessing, early + 1):
        raise DataError(
            f"the loss diverged: {early:.2f} nats in the first {COMPARED_STEPS} steps, {late:.2f} in those up to step "
            f"{steps[-1].step}, where guessing gives {guessing:.2f}. Lower training.learning_rate. The last step's "
            f"rows: {name_rows()}."
        )
