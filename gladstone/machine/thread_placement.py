"""Uneven thread placement: several threads on each free CPU, one on each CPU that other work uses.

llama.cpp divides most operations into equal parts, one per thread. With one thread per CPU, the thread that shares its
CPU with another program finishes last, or the scheduler moves all threads to the free CPUs: beside one busy program two
CPUs do the work of one. With three threads on each free CPU and one on each shared CPU, all of them finish at about the
same time, even if the shared CPU gives us only its fair share.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gladstone.machine.host import Cores
from gladstone.machine.openmp import loaded_library, may_change_spinning

THREADS_PER_FREE_CPU = 3
MAX_CPUS = 4  # with more CPUs, one thread less per occupied CPU is as fast
MIN_OCCUPIED_SHARE = 1 / 3  # of the CPUs that other work must occupy: below that there is little to gain
USERS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def can_place_threads(cores: Cores) -> bool:
    """Whether threads can be placed here: few CPUs, no quota on them, and no placement set by the user."""
    few = 2 <= cores.usable <= MAX_CPUS and cores.usable == cores.allowed
    return sys.platform == "linux" and few and may_change_spinning() and not any(name in os.environ for name in USERS)


def placed_thread_count(cpus: int, occupied: float) -> int | None:
    """Number of threads to place while other work occupies `occupied` CPUs; None if it is not worthwhile."""
    shared = min(max(1, round(occupied)), cpus - 1)
    return THREADS_PER_FREE_CPU * (cpus - shared) + shared if shared >= MIN_OCCUPIED_SHARE * cpus else None


def cpu_per_thread(cpus: list[int], threads: int) -> list[int]:
    """The CPU of each thread, for the number of threads from `placed_thread_count`; free CPUs come first."""
    shared = (THREADS_PER_FREE_CPU * len(cpus) - threads) // (THREADS_PER_FREE_CPU - 1)
    free = cpus[: len(cpus) - shared]
    return free * THREADS_PER_FREE_CPU + cpus[len(free) :]


@contextmanager
def place_threads(threads: int) -> Iterator[None]:
    """Place the OpenMP threads that compute for the calling thread while the block runs; then unpin them.

    Does nothing if the OpenMP library in use is not GNU's, or if the CPUs of this process have changed meanwhile.
    """
    library = loaded_library()
    cpus = sorted(os.sched_getaffinity(0))
    if library is None or placed_thread_count(len(cpus), (THREADS_PER_FREE_CPU * len(cpus) - threads) / 2) != threads:
        yield
        return
    first = os.getpid() % len(cpus)  # so that two such processes choose different CPUs
    cpu_of = cpu_per_thread(cpus[first:] + cpus[:first], threads)
    team: list[int] = []

    def pin(_: int | None) -> None:
        team.append(threading.get_native_id())
        with suppress(OSError):
            os.sched_setaffinity(0, {cpu_of[library.omp_get_thread_num()]})

    # the same threads run llama.cpp's next parallel region of this size
    library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(pin), None, ctypes.c_uint(threads), 0)
    try:
        yield
    finally:
        for thread in team:
            with suppress(OSError):  # it may have ended
                os.sched_setaffinity(thread, cpus)
