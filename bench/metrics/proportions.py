"""Proportions with intervals that also hold for 0 % and 100 %.

The bootstrap gives 0 of 30 an interval of zero width. Wilson's score interval does not, nor does Newcombe's interval
for the difference of paired proportions, which builds on it (1998, Statistics in Medicine 17:2635, method 10).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bench.results import Result
from gladstone.confidence import Z

Flags = npt.NDArray[np.bool_]


def proportion(scores: Sequence[float]) -> Result:
    """The proportion of ones among scores of 0 and 1, with Wilson's interval.

    >>> none = proportion([0.0] * 30)
    >>> none.low, round(none.high, 3)
    (0.0, 0.114)
    """
    n = len(scores)
    mean = float(np.mean(scores))
    middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    low, high = (0.0 if mean == 0 else middle - half), (1.0 if mean == 1 else middle + half)
    return Result(mean, low, high, n)


def proportion_difference(first: Sequence[float], other: Sequence[float]) -> Result:
    """The proportion of `other` minus that of `first` over the same items, with Newcombe's paired interval.

    >>> gap = proportion_difference([0.0] * 30, [1.0] * 30)
    >>> round(gap.low, 3), gap.high
    (0.839, 1.0)
    """
    if len(first) != len(other):
        raise ValueError(f"not the same items: {len(first)} and {len(other)}")
    one, two = proportion(first), proportion(other)
    together = _correlation(np.asarray(first, bool), np.asarray(other, bool))
    gap = two.mean - one.mean
    low = gap - _spread(two.mean - two.low, one.high - one.mean, together)
    high = gap + _spread(two.high - two.mean, one.mean - one.low, together)
    return Result(gap, max(low, -1.0), min(high, 1.0), one.n)


def _spread(ours: float, theirs: float, together: float) -> float:
    return math.sqrt(max(ours**2 - 2 * together * ours * theirs + theirs**2, 0.0))


def _correlation(first: Flags, other: Flags) -> float:
    """The phi coefficient of pairs with Newcombe's correction; 0 if one side is constant."""
    both, neither = int((first & other).sum()), int((~first & ~other).sum())
    only_first, only_other = int((first & ~other).sum()), int((~first & other).sum())
    sides = (both + only_first) * (only_other + neither) * (both + only_other) * (only_first + neither)
    covariance = float(both * neither - only_first * only_other)
    if covariance > 0:
        covariance = max(covariance - len(first) / 2, 0.0)
    return covariance / math.sqrt(sides) if sides else 0.0
