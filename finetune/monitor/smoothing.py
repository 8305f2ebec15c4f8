"""Curves as they are drawn: smoothed, and thinned so that 20,000 steps take no more than a picture's width."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.monitor.metrics_log import StepStats

POINTS = 600  # about as many as a picture can show
SHORTEST_SPAN, SPANS = 10, 40  # a running mean is over 10 steps, and over a 40th of a long run


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps. `low` and `high` are the extremes of what one point stands for; all are finite."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


def losses(steps: Sequence[StepStats]) -> list[float]:
    """Training loss of each step."""
    return [stats.loss_nats_per_token for stats in steps]


def speeds(steps: Sequence[StepStats]) -> list[float]:
    """Real tokens per second of each step; nan where a step took no time that the clock could tell."""
    return [stats.tokens / stats.step_s if stats.step_s else float("nan") for stats in steps]


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Exponential running mean without the pull of its start (as Adam corrects its moments).

    A value that is not finite (a skipped step) leaves the mean where it is; before the first finite one it is nan.
    """
    weight = 1 - 1 / max(SHORTEST_SPAN, len(values) / SPANS)
    means, total, norm = np.full(len(values), np.nan), 0.0, 0.0
    for place, value in enumerate(values):
        if np.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        if norm:
            means[place] = total / norm
    return means


def thinned(steps: Sequence[int], values: Sequence[float] | np.ndarray, points: int = POINTS) -> Curve:
    """At most `points` points, each the mean of its neighbours with their extremes; values not finite are left out."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    told = np.isfinite(y)
    x, y = x[told], y[told]
    if len(x) <= points:
        return Curve(x, y, y, y)
    begins = np.linspace(0, len(x), points, endpoint=False).astype(int)
    counts = np.diff([*begins, len(x)])
    mean_x, mean_y = (np.add.reduceat(each, begins) / counts for each in (x, y))
    return Curve(mean_x, mean_y, np.minimum.reduceat(y, begins), np.maximum.reduceat(y, begins))
