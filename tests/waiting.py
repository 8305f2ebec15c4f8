"""Waiting for what must happen: as long as it takes, so that no test depends on how fast the machine is."""

import time
from collections.abc import Callable

# a limit for what hangs, far beyond what the slowest machine needs; the limit of a whole test is pytest's
PATIENCE_S = 240


def wait_until(condition: Callable[[], object], expected: str, check: Callable[[], object] | None = None) -> None:
    """Return once `condition` is true, and fail with `expected` if it never is.

    `check` runs at every look and fails where waiting is in vain.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if check:
            check()
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S} s in vain: {expected}"
        time.sleep(0.01)
