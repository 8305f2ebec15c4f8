"""Numbers for people: significant digits only, a true minus sign."""

from bench.results import Result, Spread


def format_number(value: float) -> str:
    """Four decimals below 0.01, three below 1, two below 100, none from 1,000 on.

    >>> [format_number(value) for value in (0, 0.00000312, 0.00123, 0.12345, 28.141, 123.45, 12345.6)]
    ['0', '3e−06', '0.0012', '0.123', '28.14', '123.5', '12,346']
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.00005:  # would round to 0, and a value other than 0 is not shown as 0
        return f"{value:.0e}".replace("-", "−")
    decimals = 4 if size < 0.01 else 3 if size < 1 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def format_signed(value: float) -> str:
    """A difference with its sign.

    >>> [format_signed(value) for value in (1.5, -0.25, 0.0)]
    ['+1.50', '−0.250', '0']
    """
    return f"+{format_number(value)}" if value > 0 else format_number(value)


def format_interval(result: Result) -> str:
    """`[low, high]`."""
    return f"[{format_number(result.low)}, {format_number(result.high)}]"


def format_signed_interval(result: Result) -> str:
    """`[low, high]` with signs."""
    return f"[{format_signed(result.low)}, {format_signed(result.high)}]"


def format_range(spread: Spread) -> str:
    """`(minimum–maximum)`, or nothing for a single round."""
    return f"({format_number(spread.low)}–{format_number(spread.high)})" if spread.n > 1 else ""
