"""Steps from which a training does not recover: a loss that is not finite, no gradient, a loss that diverges.

In float16, whose numbers end at 65,504, the loss is scaled up so that no gradient vanishes. The scaler halves its scale
after a step whose gradient overflows, and the step is skipped; the first steps of a training often are.
"""

import math
from collections.abc import Callable, Sequence

from finetune.monitor.metrics_log import History, StepStats
from gladstone.errors import DataError

COMPARED_STEPS = 10  # the mean losses of the first and of the last ones are compared
NAMED_ROWS = 8
MOST_SKIPPED = 10  # steps in a row: the scale of the loss is then 1,024 times lower
NO_GRADIENT = "step 1 has no gradient: nothing would be learnt. Do the layers of lora.targets reach the answers?"


def row_names(sources: Callable[[Sequence[int]], list[str]], rows: Sequence[int]) -> str:
    """Name the first of some rows by file and line, and count the others."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return ", ".join(sources(rows[:NAMED_ROWS])) + more


def check_step(step: int, loss: float, grad_norm: float, name_rows: Callable[[], str], *, scaled: bool) -> None:
    """Raise DataError if the loss or gradient of a step, counted from 1, is not finite, or step 1 has no gradient.

    `name_rows` returns the names of the step's rows. With `scaled` gradients a step that is not finite is skipped.
    """
    if step == 1 and grad_norm == 0:
        raise DataError(NO_GRADIENT)
    for name, value in (("loss", loss), ("gradient", grad_norm)):
        if not (scaled or math.isfinite(value)):
            raise DataError(
                f"the {name} of step {step} is {value}: lower training.learning_rate, or look at its rows: "
                f"{name_rows()}."
            )


def check_skips(history: History, name_rows: Callable[[Sequence[int]], str]) -> None:
    """Raise DataError if the last steps were skipped, MOST_SKIPPED in a row.

    `name_rows` returns the names of the rows of some steps, which count from 1.
    """
    count = history.skipped_in_a_row
    if count < MOST_SKIPPED:
        return
    skipped = history.steps[-count:]
    scales = [f"{event['loss_scale']:,.10g}" for event in history.events if "loss_scale" in event][-count:]
    found = sorted({str(stats.grad_norm) for stats in skipped})
    sound = skipped[0].step - 1
    kept = f"The checkpoint of step {sound} is kept, and --resume goes on after it" if sound else "Nothing was learnt"
    raise DataError(
        f"{count} steps in a row were skipped, {skipped[0].step} to {skipped[-1].step}: their gradient is not finite "
        f"({' or '.join(found)}), though the scale of the loss was lowered from {scales[0]} to {scales[-1]}. "
        f"{kept}. Numbers in float16 end at 65,504: train on a GPU that computes in bfloat16 (compute capability 8.0 "
        "or more), lower training.learning_rate in a new run, or look at the rows of these steps: "
        f"{name_rows([stats.step for stats in skipped])}."
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
