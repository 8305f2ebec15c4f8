"""Numbers as people read them: as many digits as they are worth, a true minus sign, units."""

from bench.results import Result, Spread


def figure(value: float) -> str:
    """Four decimals below 0.01, three below 1, two below 100, none from 1,000 on.

    >>> [figure(value) for value in (0, 0.00000312, 0.00123, 0.12345, 28.141, 123.45, 12345.6)]
    ['0', '3e−06', '0.0012', '0.123', '28.14', '123.5', '12,346']
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.00005:  # would round to 0, and what is not 0 is not shown as 0
        return f"{value:.0e}".replace("-", "−")
    decimals = 4 if size < 0.01 else 3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign.

    >>> [signed(value) for value in (1.5, -0.25, 0.0)]
    ['+1.50', '−0.250', '0']
    """
    return f"+{figure(value)}" if value > 0 else figure(value)


def interval(result: Result) -> str:
    """`[low, high]`."""
    return f"[{figure(result.low)}, {figure(result.high)}]"


def signed_interval(result: Result) -> str:
    """`[low, high]` with signs."""
    return f"[{signed(result.low)}, {signed(result.high)}]"


def span(spread: Spread) -> str:
    """`(least–greatest)`, or nothing for a single round."""
    return f"({figure(spread.low)}–{figure(spread.high)})" if spread.n > 1 else ""
