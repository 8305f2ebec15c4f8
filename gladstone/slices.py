"""How soon the system gives a thread that wakes up a processor that another program uses.

By default each has its turn of some milliseconds. Threads that wait for each other at each operation need a processor
often, and for less than that. Linux gives short turns, and soon, to who asks for them (6.12 and later; an earlier one
ignores it); the share of the processor stays the same.
"""

import ctypes
import platform
import sys
from pathlib import Path

NUMBERS = {"x86_64": (315, 314), "aarch64": (275, 274)}  # of sched_getattr and sched_setattr, which the C library lacks
ORDINARY = 0  # SCHED_OTHER
SHORT_NS, DEFAULT_NS = 200_000, 0


class _Attributes(ctypes.Structure):
    """sched.h's struct sched_attr, its first version."""

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


class Slices:
    """The length of the turns of all threads of this process; without effect where the system has no say in it."""

    def __init__(self) -> None:
        self._numbers = NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
        self._short: set[int] = set()  # threads that were changed; those of them that have ended do no harm

    def keep_short(self, short: bool) -> None:
        """Short turns for all threads that there are by now, or the default again; a new thread has its starter's."""
        if self._numbers is None or not (short or self._short):
            return
        threads = {int(each.name) for each in Path("/proc/self/task").iterdir()}
        for thread in threads - self._short if short else threads:
            self._set(thread, SHORT_NS if short else DEFAULT_NS)
        self._short = threads if short else set()

    def _set(self, thread: int, slice_ns: int) -> None:
        """Leaves alone a thread that has ended meanwhile, or that runs by other rules."""
        assert self._numbers is not None  # noqa: S101 - asked by the caller
        get, change = self._numbers
        call = ctypes.CDLL(None).syscall
        found = _Attributes()
        size = ctypes.sizeof(found)
        if call(get, thread, ctypes.byref(found), size, 0) == 0 and found.policy == ORDINARY:
            found.size, found.runtime = size, slice_ns
            call(change, thread, ctypes.byref(found), 0)
