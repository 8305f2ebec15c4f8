"""The scheduler's time slice for the threads of this process, on Linux.

By default a thread keeps a CPU for a few milliseconds. OpenMP threads synchronise after every operation: they need a
CPU often and for less time than that. From Linux 6.12 on, a thread that asks for a short slice is scheduled sooner and
keeps its share of the CPU; an older kernel ignores the request.
"""

import ctypes
import platform
import sys
from pathlib import Path

# of the system calls sched_getattr and sched_setattr, for which the C library has no wrappers
NUMBERS = {"x86_64": (315, 314), "aarch64": (275, 274)}
ORDINARY = 0  # SCHED_OTHER
SHORT_NS, DEFAULT_NS = 200_000, 0


class _Attributes(ctypes.Structure):
    """The kernel's struct sched_attr, first version."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


class TimeSlices:
    """Sets the time slice of all threads of this process; does nothing where the system has no such setting."""

    def __init__(self) -> None:
        self._numbers = NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
        self._short: set[int] = set()  # thread ids with a short slice; ids of ended threads do no harm

    def set_short(self, short: bool) -> None:
        """Give all current threads short slices, or the default again. A new thread inherits its creator's slice."""
        if self._numbers is None or not (short or self._short):
            return
        threads = {int(entry.name) for entry in Path("/proc/self/task").iterdir()}
        for thread in threads - self._short if short else threads:
            self._set(thread, SHORT_NS if short else DEFAULT_NS)
        self._short = threads if short else set()

    def _set(self, thread: int, slice_ns: int) -> None:
        """Set one thread's slice; skip a thread that has ended or has another scheduling policy."""
        assert self._numbers is not None  # noqa: S101 - the caller checks it
        get, change = self._numbers
        call = ctypes.CDLL(None).syscall
        attributes = _Attributes()
        size = ctypes.sizeof(attributes)
        if call(get, thread, ctypes.byref(attributes), size, 0) == 0 and attributes.policy == ORDINARY:
            attributes.size, attributes.runtime = size, slice_ns
            call(change, thread, ctypes.byref(attributes), 0)
