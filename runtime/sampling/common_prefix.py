"""The longest common prefix of two lists of tokens."""

from collections.abc import Sequence


def common_prefix_length(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """Length of the longest common prefix of two lists, at most `limit`."""
    limit = min(limit, len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit  # equal up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
