"""Memory bandwidth of the CPU. Decoding reads every weight once for each token, so bandwidth bounds its speed."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gladstone.machine.host import available_memory_bytes

BLOCK_BYTES = 128 << 20  # for each thread; larger than any cache
LEAST_BLOCK_BYTES = 16 << 20
MEMORY_DIVISOR = 8  # all blocks take at most this fraction of the free memory


@dataclass(frozen=True)
class Bandwidth:
    """The best of several passes, in bytes per second; a copy counts its bytes twice, as read and as written."""

    threads: int
    read_bytes_per_s: float
    copy_bytes_per_s: float

    @property
    def best_bytes_per_s(self) -> float:
        """The higher of the two, which other work disturbed less."""
        return max(self.read_bytes_per_s, self.copy_bytes_per_s)


def measure_bandwidth(threads: int, time_s: float = 0.3) -> Bandwidth:
    """Time sums and copies of arrays larger than the cache, in all threads at once (numpy releases the GIL)."""
    import numpy as np

    room = available_memory_bytes() // MEMORY_DIVISOR // (2 * threads)
    size = max(LEAST_BLOCK_BYTES, min(BLOCK_BYTES, room)) // 8
    sources = [np.ones(size, np.uint64) for _ in range(threads)]
    targets = [np.zeros(size, np.uint64) for _ in range(threads)]
    moved = 8 * size * threads
    read_s = _best_s([source.sum for source in sources], time_s / 2)
    pairs = zip(sources, targets, strict=True)
    copy_s = _best_s([_copier(np, source, target) for source, target in pairs], time_s / 2)
    return Bandwidth(threads, moved / read_s, 2 * moved / copy_s)


def _copier(np: Any, source: Any, target: Any) -> Callable[[], Any]:
    return lambda: np.copyto(target, source)


def _best_s(works: list[Callable[[], Any]], time_s: float) -> float:
    """The shortest time in seconds of all works in parallel, over at least two passes."""
    begin_s, times_s = time.perf_counter(), [float("inf")]
    while len(times_s) < 3 or time.perf_counter() - begin_s < time_s:
        workers = [threading.Thread(target=work) for work in works]
        start_s = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)
