"""Smooths curves, and thins them to the width of a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.monitor.metrics_log import StepStats

POINTS = 600  # about as many as a chart can show
SHORTEST_SPAN, SPANS = 10, 40  # the running mean covers 10 steps, or a 40th of a long run


@dataclass(frozen=True)
class Curve:
    """Finite values over optimizer steps. `low` and `high` are the extremes of the values behind each point."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


def losses(steps: Sequence[StepStats]) -> list[float]:
    """The training loss of each step."""
    return [stats.loss_nats_per_token for stats in steps]


def speeds(steps: Sequence[StepStats]) -> list[float]:
    """Tokens per second of each step, without padding; nan if a step was too short to measure."""
    return [stats.tokens / stats.step_s if stats.step_s else float("nan") for stats in steps]


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Exponential running mean with bias correction, as in Adam.

    A value that is not finite (a skipped step) leaves the mean unchanged; before the first finite value it is nan.
    """
    weight = 1 - 1 / max(SHORTEST_SPAN, len(values) / SPANS)
    means, total, norm = np.full(len(values), np.nan), 0.0, 0.0
    for step, value in enumerate(values):
        if np.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        if norm:
            means[step] = total / norm
    return means


def thinned(steps: Sequence[int], values: Sequence[float] | np.ndarray, points: int = POINTS) -> Curve:
    """At most `points` points, each the mean of a group with its extremes; values that are not finite are left out."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= points:
        return Curve(x, y, y, y)
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    mean_x, mean_y = (np.add.reduceat(axis, starts) / counts for axis in (x, y))
    return Curve(mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))
