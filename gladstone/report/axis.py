"""Round values along the axis of a plot."""

import math
from collections.abc import Sequence


def round_ticks(
    low: float, high: float, count: int, *, factors: Sequence[float] = (1, 2, 2.5, 5, 10), least: float = 0.0
) -> tuple[float, ...]:
    """About `count` round values that enclose low and high (low < high), a step of at least `least` apart.

    >>> round_ticks(0, 9, 6)
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    rough = max((high - low) / (count - 1), least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in factors if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))
