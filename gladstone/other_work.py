"""How much processor time others take: what the processors did, less what this process did."""

import os
import time
from collections.abc import Callable

IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are counted as users too
SHORTEST_S = 0.2  # the system counts in ticks of 10 ms
COST_SHARE = 0.002  # of the time that looking may take: with many processors it takes milliseconds
FELT = 0.25  # processors that others have to take before it is felt: less is a desktop's background


class OtherWork:
    """Processors' worth of time that other processes took of those that this one may use. Use it from one thread."""

    def __init__(
        self, busy_s: Callable[[], float] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`busy_s` gives the seconds that others have worked so far."""
        self._busy_s, self._clock = busy_s or _others_busy_s, clock
        self._begin_s = self._since_s = self._next_s = 0.0
        self._first_busy_s = self._last_busy_s = 0.0
        self._processors = 0.0
        self._begun = False

    def look(self) -> float:
        """Processors that others took lately; looked up again only after a while. 0 at first."""
        now_s = self._clock()
        if now_s < self._next_s:
            return self._processors
        cost_s = time.thread_time()
        busy_s = self._busy_s()
        cost_s = time.thread_time() - cost_s  # of a processor: beside other work it may take longer by far
        if not self._begun:
            cost_s = 0.0  # of an import, mostly
            self._begun, self._begin_s, self._first_busy_s = True, now_s, busy_s
        else:
            self._processors = max(0.0, busy_s - self._last_busy_s) / (now_s - self._since_s)
        self._since_s, self._last_busy_s = now_s, busy_s
        self._next_s = now_s + max(SHORTEST_S, cost_s / COST_SHARE)
        return self._processors

    def mean(self) -> float:
        """Processors that others took since the first look."""
        elapsed_s = self._clock() - self._begin_s
        if not self._begun or elapsed_s <= 0:
            return 0.0
        return max(0.0, self._busy_s() - self._first_busy_s) / elapsed_s


def _others_busy_s() -> float:
    """Of the processors that this process may use; time that a hypervisor took counts as others'."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    spent = [each._asdict() for number, each in enumerate(times) if number in allowed]
    busy_s = sum(float(value) for each in spent for name, value in each.items() if name not in IDLE)
    return busy_s - time.process_time()
