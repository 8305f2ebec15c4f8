"""CPU load of other processes: the busy time of the CPUs, less the time of this process."""

import os
import time
from collections.abc import Callable

IDLE = ("idle", "iowait", "guest", "guest_nice")  # guest time is included in user time
SHORTEST_S = 0.2  # between two measurements: the system counts in ticks of 10 ms
COST_SHARE = 0.002  # of the time that measuring may take: with many CPUs one measurement takes milliseconds
NOTICEABLE = 0.25  # CPUs that other work must take to matter: less is a desktop's background


class OtherWork:
    """How many CPUs other processes occupy, of those that this process may use. Use it from one thread."""

    def __init__(
        self, busy_s: Callable[[], float] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`busy_s` returns the CPU seconds that other processes have used so far."""
        self._busy_s, self._clock = busy_s or _others_busy_s, clock
        self._begin_s = self._since_s = self._next_s = 0.0
        self._first_busy_s = self._last_busy_s = 0.0
        self._cpus = 0.0
        self._begun = False

    def measure(self) -> float:
        """CPUs that other work occupied recently; 0 at the first call. Measures again only after a while."""
        now_s = self._clock()
        if now_s < self._next_s:
            return self._cpus
        cost_s = time.thread_time()
        busy_s = self._busy_s()
        cost_s = time.thread_time() - cost_s  # CPU time: elapsed time beside other work may be far longer
        if not self._begun:
            cost_s = 0.0  # mostly the import of psutil
            self._begun, self._begin_s, self._first_busy_s = True, now_s, busy_s
        else:
            self._cpus = max(0.0, busy_s - self._last_busy_s) / (now_s - self._since_s)
        self._since_s, self._last_busy_s = now_s, busy_s
        self._next_s = now_s + max(SHORTEST_S, cost_s / COST_SHARE)
        return self._cpus

    def mean(self) -> float:
        """Mean number of CPUs that other work has occupied since the first measurement."""
        elapsed_s = self._clock() - self._begin_s
        if not self._begun or elapsed_s <= 0:
            return 0.0
        return max(0.0, self._busy_s() - self._first_busy_s) / elapsed_s


def _others_busy_s() -> float:
    """CPU seconds of other processes on the CPUs that this process may use, time stolen by a hypervisor included."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    spent = [cpu._asdict() for number, cpu in enumerate(times) if number in allowed]
    busy_s = sum(float(value) for cpu in spent for name, value in cpu.items() if name not in IDLE)
    return busy_s - time.process_time()
