"""How long OpenMP threads spin while they wait for each other, under llama.cpp and torch, by the machine's other load.

The threads meet at the end of every operation, and the early ones spin until the last one arrives: for milliseconds in
GNU's library. On an idle machine nothing is faster. If another program occupies the last thread's CPU, the spinning
threads burn the CPU time that it needs, at each of the hundreds of operations of a token: an answer may take forever.
Beside other work the threads should spin for a few microseconds and then sleep.

GNU's library reads the spin time from the environment once, when it is loaded. But it spins briefly by itself while it
has more threads than there are CPUs: a few sleeping threads are enough to switch that on and off at any time.
"""

import ctypes
import os
import sys
import threading
import time

from gladstone.machine.other_work import NOTICEABLE, OtherWork
from gladstone.machine.time_slices import TimeSlices

USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
LIBRARY = "libgomp.so.1"  # torch bundles its own copy under the same name: a process loads one of them
LOOK_S, IDLE_LOOK_S = 0.25, 1.0
IDLE_SHARE = 0.02  # of one CPU

_watching: list[threading.Thread] = []
_occupied = [0.0]  # CPUs that other work occupied, by the last measurement
_lock = threading.Lock()


class SleepingThreads:
    """Sleeping OpenMP threads, which make the threads outnumber the CPUs while `spin_briefly` is on."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.GOMP_parallel
        # any thread-safe function that takes one pointer
        self._nothing = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        self._enough: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def spin_briefly(self, briefly: bool) -> None:
        """Make waiting threads of this process sleep soon, or spin as OpenMP does by default."""
        if briefly and self._enough is None:
            self._enough = threading.Event()
            self._thread = threading.Thread(target=self._hold, args=(self._enough,), daemon=True)
            self._thread.start()
        elif not briefly and self._enough is not None and self._thread is not None:
            self._enough.set()
            self._thread.join()
            self._enough = self._thread = None

    def _hold(self, enough: threading.Event) -> None:
        """Start the threads; they sleep as long as the thread that started them lives."""
        self._run(self._nothing, ctypes.create_string_buffer(1), ctypes.c_uint((os.cpu_count() or 1) + 1), 0)
        enough.wait()


def adapt_to_other_work() -> None:
    """Start to adapt the spinning of OpenMP's threads to the machine's other load. Further calls do nothing.

    A setting of the user in the environment stays. An OpenMP library other than GNU's is left alone.
    """
    with _lock:
        if not _watching:
            thread = threading.Thread(target=_watch, name="gladstone waiting", daemon=True)
            _watching.append(thread)
            thread.start()


def occupied_cpus() -> float:
    """CPUs that other work occupied in the last quarter second, or in the last second if this process was idle."""
    return _occupied[0]


def may_change_spinning() -> bool:
    """Whether the spinning may be changed: on Linux, unless the user has set it in the environment."""
    return sys.platform == "linux" and not any(name in os.environ for name in USERS)


def loaded_library() -> ctypes.CDLL | None:
    """GNU's OpenMP library if this process has loaded it; a copy loaded here might not be the one that computes."""
    try:
        return ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _watch() -> None:
    sleepers: SleepingThreads | None = None
    slices = TimeSlices()
    changes = may_change_spinning()
    others, used_s = OtherWork(), time.process_time()
    others.measure()
    busy, look_s = False, LOOK_S
    while True:
        if changes and sleepers is None and (library := loaded_library()) is not None:
            sleepers = SleepingThreads(library)
        if sleepers is not None:
            sleepers.spin_briefly(busy)
        if changes:
            slices.set_short(busy)
        time.sleep(look_s)
        _occupied[0] = others.measure()
        busy = _occupied[0] >= NOTICEABLE
        now_s = time.process_time()
        look_s = LOOK_S if now_s - used_s > IDLE_SHARE * look_s else IDLE_LOOK_S
        used_s = now_s


def _after_fork() -> None:
    _watching.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
