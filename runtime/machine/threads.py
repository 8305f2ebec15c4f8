"""How many threads compute: measured once for each processor, model and backend, and stored in the cache folder.

Decoding is bound by memory bandwidth: on most processors fewer threads than logical CPUs are as fast or faster, and no
property of the system tells how many. Prefill is bound by computation and uses more threads. A measurement that other
work disturbed expires soon, and `gladstone.machine.thread_tuner` discards one that later times disprove.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from gladstone.gguf.header import GgufInfo
from gladstone.machine.host import Cores, cache_dir, cpu_name, read_cores
from gladstone.machine.measurement_cache import read_measurements, store_measurement
from gladstone.machine.other_work import NOTICEABLE, OtherWork

ENOUGH_S, LIMIT_S = 0.5, 2.0
MAX_CANDIDATES, ROUNDS = 5, 8
PREFILL_TOKENS = 16  # of the prompt of a benchmark
PREFILL_DECODES = 6  # upper bound of the time of such a prompt, in decoded tokens
AS_FAST = 1.03  # of counts within this factor the smallest is chosen: it leaves CPUs to detokenising and other work
NOISY = 1.5  # a median above the minimum by this factor shows other work on the machine
UNSTEADY_S = 900.0  # a disturbed measurement is used for this time


@dataclass(frozen=True)
class Threads:
    """Threads for decoding and for prefill; `steady` unless other work disturbed the measurement.

    `seen` holds the shortest times in seconds, by "decode" or "prefill" and by count.
    """

    decode: int
    prefill: int
    steady: bool = field(default=True, compare=False)
    seen: dict[str, dict[int, float]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ThreadBenchmark:
    """A context to measure: how to set its threads (decode, prefill), one evaluation of each kind, and the clock."""

    set_threads: Callable[[int, int], None]
    decode_once: Callable[[], None]
    prefill_once: Callable[[], None]
    clock: Callable[[], float] = time.perf_counter


@dataclass
class Measured:
    """Times of each candidate, in measuring order."""

    times_s: dict[int, list[float]] = field(default_factory=dict)

    @property
    def least_s(self) -> dict[int, float]:
        """The shortest time of each count."""
        return {count: min(times) for count, times in self.times_s.items()}

    @property
    def best(self) -> int:
        """The smallest count that is as fast as the fastest."""
        fastest = min(self.least_s.values())
        return min(count for count, time_s in self.least_s.items() if time_s <= fastest * AS_FAST)

    @property
    def steady(self) -> bool:
        """Whether no other work disturbed the times."""
        return all(median(times) <= NOISY * min(times) for times in self.times_s.values())


def choose_threads(
    model: GgufInfo,
    backend: str,
    benchmark: ThreadBenchmark,
    cores: Cores | None = None,
    others: OtherWork | None = None,
) -> Threads:
    """Threads for a model: recalled from an earlier measurement, else measured in at most two seconds.

    `backend` names the library that computes, as `gladstone.llamacpp.backends.backend_id` does. The context of the
    benchmark has the chosen counts afterwards. A measurement that `others`, the other work on the machine, disturbed is
    used for a while and then repeated.
    """
    cores = cores or read_cores()
    if cores.usable == 1:
        return _set(benchmark, Threads(1, 1))
    store, key = _store(), threads_key(model, backend, cores)
    known = recall(store, key)
    if known is not None and max(known.decode, known.prefill) <= cores.allowed:
        return _set(benchmark, known)
    others = others or OtherWork()
    others.measure()
    threads, steady = measure_threads(benchmark, candidates(cores))
    threads = replace(threads, steady=steady and others.mean() < NOTICEABLE)
    remember(store, key, threads, steady=threads.steady)
    return _set(benchmark, threads)


def discard_threads(model: GgufInfo, backend: str) -> None:
    """Discard the stored measurement of a model; the next engine measures again."""
    store_measurement(_store(), threads_key(model, backend, read_cores()), None)


def candidates(cores: Cores) -> tuple[int, ...]:
    """Thread counts to measure, the likeliest first: all physical cores, all logical CPUs, then fractions of them."""
    physical = min(cores.physical, cores.usable)
    counts = [physical, cores.usable, physical // 2, physical * 3 // 4, physical // 4, physical - 1]
    return tuple(dict.fromkeys(count for count in counts if count >= 1))[:MAX_CANDIDATES]


def measure_threads(benchmark: ThreadBenchmark, counts: Sequence[int]) -> tuple[Threads, bool]:
    """The fastest counts, and whether the times were steady. Decoding is measured first, prefill in the time left.

    The counts take turns, so that a disturbance affects all of them; the shortest time of each is compared. Prefill is
    measured with the largest and the likeliest count only; without time for that, it gets the largest.
    """
    begin_s = benchmark.clock()
    decode = _measure(benchmark, benchmark.decode_once, counts, (ENOUGH_S / 2, LIMIT_S * 0.6))
    largest, left_s = max(counts), LIMIT_S - (benchmark.clock() - begin_s)
    # each of two counts is warmed up once and timed once
    if 4 * PREFILL_DECODES * min(min(times) for times in decode.times_s.values()) > left_s:
        return Threads(decode.best, largest, seen={"decode": decode.least_s}), decode.steady
    contenders = tuple(dict.fromkeys((largest, counts[0])))
    prefill = _measure(benchmark, benchmark.prefill_once, contenders, (ENOUGH_S / 2, left_s))
    seen = {"decode": decode.least_s, "prefill": prefill.least_s}
    return Threads(decode.best, prefill.best, seen=seen), decode.steady and prefill.steady


def _measure(
    benchmark: ThreadBenchmark, once: Callable[[], None], counts: Sequence[int], times_s: tuple[float, float]
) -> Measured:
    """Time rounds over the counts for at least `times_s[0]`; after the first count, never beyond `times_s[1]`."""
    (enough_s, limit_s), clock = times_s, benchmark.clock
    begin_s, measured = clock(), Measured()
    for number in range(ROUNDS):
        for count in counts:
            longest_s = max((max(times) for times in measured.times_s.values()), default=0.0)
            if clock() - begin_s + 2 * longest_s > limit_s:
                return measured
            benchmark.set_threads(count, count)
            once()  # the first call after a change starts the threads
            for _ in range(1 if number == 0 else 2):
                start_s = clock()
                once()
                measured.times_s.setdefault(count, []).append(clock() - start_s)
        if number and clock() - begin_s > enough_s:
            break
    return measured


def threads_key(model: GgufInfo, backend: str, cores: Cores) -> str:
    """The key of a measurement: processor, CPUs that may be used, shape of the model, backend."""
    shape = f"{model.architecture} {model.parameters} {model.quantisation}"
    return f"{cpu_name()} | {cores.allowed} of {cores.logical}, quota {cores.quota} | {shape} | {backend}"


def recall(store: Path, key: str, clock: Callable[[], float] = time.time) -> Threads | None:
    """A stored measurement; None for an unknown key, an expired measurement, or a damaged store.

    An entry without its times is not used: whether other work disturbed them is unknown.
    """
    entry = read_measurements(store).get(key)
    if not isinstance(entry, dict) or not isinstance(entry.get("seen"), dict):
        return None
    until = entry.get("until")
    if until is not None and not (isinstance(until, int | float) and 0 < until - clock() <= UNSTEADY_S):
        return None
    decode, prefill = entry.get("decode"), entry.get("prefill")
    if not (isinstance(decode, int) and isinstance(prefill, int) and decode >= 1 and prefill >= 1):
        return None
    return Threads(decode, prefill, steady=until is None)


def remember(store: Path, key: str, threads: Threads, *, steady: bool = True) -> None:
    """Store a measurement. Where the cache cannot be written, the next engine measures again."""
    until = {} if steady else {"until": time.time() + UNSTEADY_S}
    finding = {"decode": threads.decode, "prefill": threads.prefill, "seen": threads.seen}
    store_measurement(store, key, finding | until)


def _store() -> Path:
    return cache_dir() / "threads.json"


def _set(benchmark: ThreadBenchmark, threads: Threads) -> Threads:
    benchmark.set_threads(threads.decode, threads.prefill)
    return threads
