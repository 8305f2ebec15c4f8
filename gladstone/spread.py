"""Threads spread over the processors unevenly: most on those that are free, one on each that other work uses.

llama.cpp divides most operations into as many equal parts as there are threads. With a thread for each processor, the
one whose processor somebody else uses has its part done last, and the system rather puts all threads on the free
processors: beside one busy program two processors do the work of one. With three threads on each free processor and one
on each that is shared, a fair share of the latter is enough to be done at the same time.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gladstone.host import Cores
from gladstone.openmp import loaded_library, may_change

ON_FREE = 3  # threads
MOST_PROCESSORS = 4  # with more of them one thread less for each that others use is as fast
FELT_SHARE = 1 / 3  # of the processors that others take: with less there is little to be had
USERS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def may_spread(cores: Cores) -> bool:
    """Whether threads can be spread here: few processors, all of them ours, and the user has not placed threads."""
    few = 2 <= cores.usable <= MOST_PROCESSORS and cores.usable == cores.allowed
    return sys.platform == "linux" and few and may_change() and not any(name in os.environ for name in USERS)


def spread_threads(processors: int, others: float) -> int | None:
    """How many threads to spread while others take so many processors; None where it is not worth it."""
    shared = min(max(1, round(others)), processors - 1)
    return ON_FREE * (processors - shared) + shared if shared >= FELT_SHARE * processors else None


def places(processors: list[int], threads: int) -> list[int]:
    """The processor of each thread, of as many as `spread_threads` gives; the free ones come first."""
    shared = (ON_FREE * len(processors) - threads) // (ON_FREE - 1)
    free = processors[: len(processors) - shared]
    return free * ON_FREE + processors[len(free) :]


@contextmanager
def spread(threads: int) -> Iterator[None]:
    """Spread the threads with which OpenMP computes for this thread, then let them run anywhere again.

    Without effect where the OpenMP in use is not GNU's, or where the processors are others than they were.
    """
    library = loaded_library()
    processors = sorted(os.sched_getaffinity(0))
    if library is None or spread_threads(len(processors), (ON_FREE * len(processors) - threads) / 2) != threads:
        yield
        return
    first = os.getpid() % len(processors)  # two such processes should not choose the same
    where = places(processors[first:] + processors[:first], threads)
    team: list[int] = []

    def place(_: int | None) -> None:
        team.append(threading.get_native_id())
        with suppress(OSError):
            os.sched_setaffinity(0, {where[library.omp_get_thread_num()]})

    # the threads that llama.cpp's next parallel region of that size is run by
    library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(place), None, ctypes.c_uint(threads), 0)
    try:
        yield
    finally:
        for thread in team:
            with suppress(OSError):  # it may have ended
                os.sched_setaffinity(thread, processors)
