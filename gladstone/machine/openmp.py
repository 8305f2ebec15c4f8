"""How OpenMP's threads wait for each other, under llama.cpp and torch alike: by what else the machine does.

At the end of every operation the threads meet, and who comes first spins until the last one comes; in GNU's library for
milliseconds. On a quiet machine nothing is faster. Where other work has the last one's processor, its siblings burn the
time that it needs, at each of the hundreds of operations of a token: an answer may not end at all. Beside other work
they should spin for a few microseconds and then sleep.

The library reads how long from the environment once, when it is loaded. But it spins briefly by itself while it has
more threads than there are processors: a few that sleep are enough, so it can be changed at any time.
"""

import ctypes
import os
import sys
import threading
import time

from gladstone.machine.other_work import FELT, OtherWork
from gladstone.machine.time_slices import Slices

USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
LIBRARY = "libgomp.so.1"  # torch brings a copy of its own, under the same name: a process loads one of them
LOOK_S, IDLE_LOOK_S = 0.25, 1.0
IDLE_SHARE = 0.02  # of a processor

_watching: list[threading.Thread] = []
_taken = [0.0]  # processors that other work took, when it was looked at last
_lock = threading.Lock()


class Sleepers:
    """OpenMP threads that do nothing, so that there are more of them than processors while `wait_briefly` is on."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.GOMP_parallel
        # any function that takes a pointer and may be called by many threads
        self._nothing = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        self._enough: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def wait_briefly(self, briefly: bool) -> None:
        """Let the threads of this process sleep soon when they wait for each other, or as OpenMP does by default."""
        if briefly and self._enough is None:
            self._enough = threading.Event()
            self._thread = threading.Thread(target=self._hold, args=(self._enough,), daemon=True)
            self._thread.start()
        elif not briefly and self._enough is not None and self._thread is not None:
            self._enough.set()
            self._thread.join()
            self._enough = self._thread = None

    def _hold(self, enough: threading.Event) -> None:
        """Start the threads, which sleep as long as the one that started them lives."""
        self._run(self._nothing, ctypes.create_string_buffer(1), ctypes.c_uint((os.cpu_count() or 1) + 1), 0)
        enough.wait()


def follow_other_work() -> None:
    """From now on OpenMP's threads wait by what else the machine does. To be called before computing, once or often.

    What the user has set in the environment stays; of another OpenMP than GNU's nothing is changed.
    """
    with _lock:
        if not _watching:
            thread = threading.Thread(target=_watch, name="gladstone waiting", daemon=True)
            _watching.append(thread)
            thread.start()


def other_processors() -> float:
    """Processors that other work took in the last quarter of a second; in the last second if nothing was computed."""
    return _taken[0]


def may_change() -> bool:
    """Whether the threads' waiting is ours to change: on Linux, unless the user has said in the environment how."""
    return sys.platform == "linux" and not any(name in os.environ for name in USERS)


def loaded_library() -> ctypes.CDLL | None:
    """GNU's OpenMP if it is in this process already: loaded by us it might not be the one that computes."""
    try:
        return ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _watch() -> None:
    sleepers: Sleepers | None = None
    slices = Slices()
    changes = may_change()
    others, used_s = OtherWork(), time.process_time()
    others.look()
    busy, look_s = False, LOOK_S
    while True:
        if changes and sleepers is None and (library := loaded_library()) is not None:
            sleepers = Sleepers(library)
        if sleepers is not None:
            sleepers.wait_briefly(busy)
        if changes:
            slices.keep_short(busy)
        time.sleep(look_s)
        _taken[0] = others.look()
        busy = _taken[0] >= FELT
        now_s = time.process_time()
        look_s = LOOK_S if now_s - used_s > IDLE_SHARE * look_s else IDLE_LOOK_S
        used_s = now_s


def _after_fork() -> None:
    _watching.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
