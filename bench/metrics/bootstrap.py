"""Bootstrap confidence intervals over items, for statistics that are functions of sums over items.

A mean is such a function (sum of scores, count), so are perplexity (nats, tokens) and corpus BLEU (n-gram counts).
Every metric is therefore a table (items, K) and a statistic (..., K) → (...), and all resamples are one matrix product.

The interval is BCa (Efron 1987), because scores are skewed and bounded, which biases the plain percentile interval. The
quantiles are widened as in Hesterberg (2014, arXiv 1411.5279, "expanded percentile"), because resamples of n items vary
less than new samples of n items. In simulations with 10 to 100 items this covers 91–97 %, plain percentile 87–94 %.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from bench.results import BETTER, HIGHER, LOWER, SAME, TOO_FEW, WORSE, Difference, Result, Spread
from gladstone.confidence import CONFIDENCE

Table = npt.NDArray[np.float64]
Statistic = Callable[[Table], Table]

ROUNDING = 1e-12  # error of sums: a bound this close to 0 counts as 0
MIN_ANSWERS_FOR_VERDICT = 10  # with fewer items, intervals cover less than their nominal level

_NORMAL = NormalDist()
_BLOCK_CELLS = 4_000_000  # resample weights held at once: 32 MB


@dataclass(frozen=True)
class Bootstrap:
    """Parameters of the bootstrap. `expand=False` gives textbook BCa."""

    seed: int = 0
    resamples: int = 2000
    confidence: float = CONFIDENCE
    expand: bool = True


def mean(sums: Table) -> Table:
    """Sum divided by count, the columns of `mean_table`."""
    quotient: Table = sums[..., 0] / sums[..., 1]
    return quotient


def perplexity(sums: Table) -> Table:
    """exp of total nats over total tokens: long answers weigh more than short ones, as in the training loss."""
    return np.exp(mean(sums))


def mean_table(scores: Sequence[float]) -> Table:
    """The table (items, 2) whose `mean` is the mean of the scores."""
    return np.column_stack([np.asarray(scores, float), np.ones(len(scores))])


def estimate(table: Table, statistic: Statistic, bootstrap: Bootstrap) -> Result:
    """The statistic over all items with its interval, whatever the order of the items.

    Raises ValueError for fewer than two items, which have no variance.
    """
    n = len(table)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 items, not {n}")
    table = table[
        np.lexsort(table.T)
    ]  # resampling goes by position: without sorting, the order of the rows would matter
    total = table.sum(axis=0)
    value = float(statistic(total))
    draws = np.sort(_resample(table, statistic, bootstrap))
    left_out = statistic(total - table)
    low, high = _bca(draws, value, left_out, _normal_quantile(n, bootstrap))
    return Result(value, low, high, n)


def compare(first: Table, other: Table, statistic: Statistic, bootstrap: Bootstrap) -> Result:
    """`other` minus `first` over the same items: each resample draws the same items for both."""
    if first.shape != other.shape:
        raise ValueError(f"not the same items: {first.shape} and {other.shape}")
    width = first.shape[1]

    def difference(sums: Table) -> Table:
        gap: Table = statistic(sums[..., width:]) - statistic(sums[..., :width])
        return gap

    return estimate(np.column_stack([first, other]), difference, bootstrap)


def judge(difference: Result, higher_is_better: bool | None) -> Difference:
    """The verdict on a difference: two models differ if the interval, over at least ten items, excludes 0.

    With fewer items the verdict is TOO_FEW, because their intervals cover less than the nominal level.
    """
    if difference.n < MIN_ANSWERS_FOR_VERDICT:
        return Difference(difference, TOO_FEW)
    if difference.low <= ROUNDING and difference.high >= -ROUNDING:
        return Difference(difference, SAME)
    higher = difference.low > 0
    if higher_is_better is None:
        return Difference(difference, HIGHER if higher else LOWER)
    return Difference(difference, BETTER if higher == higher_is_better else WORSE)


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(float(np.median(values)), min(values), max(values), len(values))


def _resample(table: Table, statistic: Statistic, bootstrap: Bootstrap) -> Table:
    n = len(table)
    generator = np.random.default_rng(bootstrap.seed)
    block = max(1, _BLOCK_CELLS // n)
    even = np.full(n, 1 / n)
    sizes = [min(block, bootstrap.resamples - start) for start in range(0, bootstrap.resamples, block)]
    return np.concatenate([statistic(generator.multinomial(n, even, size) @ table) for size in sizes])


def _bca(draws: Table, value: float, left_out: Table, quantile: float) -> tuple[float, float]:
    """Quantiles of the sorted `draws`, corrected for bias (z0) and acceleration (a)."""
    below = (np.sum(draws < value) + np.sum(draws <= value)) / 2 / len(draws)
    z0 = _NORMAL.inv_cdf(min(max(below, 1 / (len(draws) + 1)), 1 - 1 / (len(draws) + 1)))
    a = _acceleration(left_out, value)
    shares = [_NORMAL.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in (-quantile, quantile)]
    low, high = np.quantile(draws, shares)
    return float(low), float(high)


def _acceleration(left_out: Table, value: float) -> float:
    """Skewness of the leave-one-out values over 6; 0 if they differ by rounding only, as for equal items."""
    gaps = left_out.mean() - left_out
    largest = float(np.abs(gaps).max())
    if largest <= 1e-12 * max(1.0, abs(value)):
        return 0.0
    gaps = gaps / largest  # the ratio is dimensionless, but powers of the gaps could overflow
    return float((gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5))


def _normal_quantile(n: int, bootstrap: Bootstrap) -> float:
    z: float = _NORMAL.inv_cdf((1 + bootstrap.confidence) / 2)
    if not bootstrap.expand:
        return z
    return math.sqrt(n / (n - 1)) * _student_quantile(z, n - 1)


def _student_quantile(z: float, freedom: int) -> float:
    """Student's t quantile at the normal quantile `z` (Abramowitz and Stegun 26.7.5; within 1 % from 4 degrees on)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    correction: float = sum(term / freedom**power for power, term in enumerate(terms, 1))
    return z + correction
