"""The loss curve as a picture. Names matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from finetune.journal import StepStats
from gladstone.artifacts import whole_file


def plot_loss(path: Path, steps: Sequence[StepStats], validation: Sequence[tuple[int, float]]) -> None:
    """Training loss per step, its running mean, and the validation loss where it was measured; written whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    numbers = [stats.step for stats in steps]
    losses = [stats.loss_nats_per_token for stats in steps]
    axes.plot(numbers, losses, color="#9db4d0", linewidth=1, label="training, each step")
    axes.plot(numbers, _running_mean(losses), color="#1f4e8c", linewidth=2, label="training, running mean")
    if validation:
        at, values = zip(*validation, strict=True)
        axes.plot(at, values, "o-", color="#c2410c", linewidth=2, label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per answer token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _running_mean(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential running mean without the pull of its start (as Adam corrects its moments)."""
    means, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        means.append(total / norm)
    return means
