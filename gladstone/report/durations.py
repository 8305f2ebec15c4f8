"""Durations for people to read."""


def duration(seconds: float) -> str:
    """Format a measured time.

    >>> [duration(seconds) for seconds in (12.34, 90.5, 9000)]
    ['12.3 s', '1 min 30 s', '2 h 30 min']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rough_duration(seconds: float) -> str:
    """Format an estimated time, rounded to the precision that an estimate has.

    >>> [rough_duration(seconds) for seconds in (4.2, 37, 740, 9000)]
    ['4 s', '40 s', '12 min', '2.5 h']
    """
    if seconds < 10:
        return f"{seconds:.0f} s"
    if seconds < 90:
        return f"{10 * round(seconds / 10)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
