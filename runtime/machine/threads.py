"""How many threads to compute with: measured once for each processor, model and back end, and remembered.

Decoding waits for memory: on most processors fewer threads than logical processors are as fast or faster, and nothing
that the system tells says how many. Prefill computes, and wants more of them. What other work disturbed is not
remembered for long, and what is found out later (`gladstone.machine.thread_tuner`) corrects what was remembered.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from gladstone.gguf.header import GgufInfo
from gladstone.machine.host import Cores, cache_dir, processor_name, read_cores
from gladstone.machine.measurement_cache import read_measurements, store_measurement
from gladstone.machine.other_work import NOTICEABLE, OtherWork

ENOUGH_S, LIMIT_S = 0.5, 2.0
MAX_CANDIDATES, ROUNDS = 5, 8
PREFILL_TOKENS = 16  # what a trial's prompt should have
PREFILL_DECODES = 6  # what such a prompt takes, in decoded tokens, at most
AS_FAST = 1.03  # of two counts that are as fast the smaller one: it leaves processors to the text and to others
NOISY = 1.5  # a median so much above the minimum comes from other work on the machine
UNSTEADY_S = 900.0  # how long such a measurement is believed


@dataclass(frozen=True)
class Threads:
    """Threads for single tokens and for prompts; `steady` unless other work disturbed the measurement.

    `seen` are the shortest times in seconds, by kind and count.
    """

    decode: int
    prefill: int
    steady: bool = field(default=True, compare=False)
    seen: dict[str, dict[int, float]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Trial:
    """A context to measure on: how to set its threads (decode, prefill), and one evaluation of each kind."""

    set_threads: Callable[[int, int], None]
    decode_once: Callable[[], None]
    prefill_once: Callable[[], None]


@dataclass
class Measured:
    """Times of each candidate, in the order in which they were taken; `steady` if other work did not disturb them."""

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
        return all(median(times) <= NOISY * min(times) for times in self.times_s.values())


def choose_threads(
    model: GgufInfo, backend: str, trial: Trial, cores: Cores | None = None, others: OtherWork | None = None
) -> Threads:
    """Threads for a model: recalled from an earlier measurement, else measured in at most two seconds.

    `backend` names the library that computes, as `gladstone.llamacpp.backends.backend_mark` does. The context of the
    benchmark has the chosen counts afterwards. A measurement that `others`, the other work on the machine, disturbed is
    used for a while and then repeated.
    """
    cores = cores or read_cores()
    if cores.usable == 1:
        return _set(trial, Threads(1, 1))
    store, key = _store(), threads_key(model, backend, cores)
    known = recall(store, key)
    if known is not None and max(known.decode, known.prefill) <= cores.allowed:
        return _set(trial, known)
    others = others or OtherWork()
    others.measure()
    threads, steady = measure_threads(trial, candidates(cores))
    threads = replace(threads, steady=steady and others.mean() < NOTICEABLE)
    remember(store, key, threads, steady=threads.steady)
    return _set(trial, threads)


def forget_threads(model: GgufInfo, backend: str) -> None:
    """What is remembered for a model was found wrong: the next start measures anew."""
    store_measurement(_store(), threads_key(model, backend, read_cores()), None)


def candidates(cores: Cores) -> tuple[int, ...]:
    """Counts worth a measurement, the likeliest first: all physical cores, all processors, then fractions of them."""
    physical = min(cores.physical, cores.usable)
    counts = [physical, cores.usable, physical // 2, physical * 3 // 4, physical // 4, physical - 1]
    return tuple(dict.fromkeys(count for count in counts if count >= 1))[:MAX_CANDIDATES]


def measure_threads(
    trial: Trial, counts: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> tuple[Threads, bool]:
    """The fastest counts, and whether the times were steady. Decoding first; prefill takes what time is left.

    Counts take turns, so that a disturbance meets all of them; each one's shortest time counts. A prompt is only tried
    with the two counts that matter, the largest and the likeliest; all processors take it where there is no time.
    """
    begin_s = clock()
    decode = _measure(trial.decode_once, trial.set_threads, counts, (ENOUGH_S / 2, LIMIT_S * 0.6), clock)
    most, left_s = max(counts), LIMIT_S - (clock() - begin_s)
    # warmed up once and timed once, for each of two counts
    if 4 * PREFILL_DECODES * min(min(times) for times in decode.times_s.values()) > left_s:
        return Threads(decode.best, most, seen={"decode": decode.least_s}), decode.steady
    contenders = tuple(dict.fromkeys((most, counts[0])))
    prefill = _measure(trial.prefill_once, trial.set_threads, contenders, (ENOUGH_S / 2, left_s), clock)
    seen = {"decode": decode.least_s, "prefill": prefill.least_s}
    return Threads(decode.best, prefill.best, seen=seen), decode.steady and prefill.steady


def _measure(
    once: Callable[[], None],
    set_threads: Callable[[int, int], None],
    counts: Sequence[int],
    times_s: tuple[float, float],
    clock: Callable[[], float],
) -> Measured:
    """Rounds over the counts until there is enough, `times_s[0]`, and never beyond `times_s[1]` but for the first."""
    enough_s, limit_s = times_s
    begin_s, measured = clock(), Measured()
    for number in range(ROUNDS):
        for count in counts:
            longest_s = max((max(times) for times in measured.times_s.values()), default=0.0)
            if clock() - begin_s + 2 * longest_s > limit_s:
                return measured
            set_threads(count, count)
            once()  # the first one after a change starts the threads
            for _ in range(1 if number == 0 else 2):
                start_s = clock()
                once()
                measured.times_s.setdefault(count, []).append(clock() - start_s)
        if number and clock() - begin_s > enough_s:
            break
    return measured


def threads_key(model: GgufInfo, backend: str, cores: Cores) -> str:
    """What a measurement holds for."""
    shape = f"{model.architecture} {model.parameters} {model.quantisation}"
    return f"{processor_name()} | {cores.allowed} of {cores.logical}, quota {cores.quota} | {shape} | {backend}"


def recall(store: Path, key: str, clock: Callable[[], float] = time.time) -> Threads | None:
    """What was remembered; None for an unknown key, an unsteady measurement of long ago, or a damaged store.

    Nor is believed what does not tell the times that were seen: nobody knows whether other work disturbed them.
    """
    found = read_measurements(store).get(key)
    if not isinstance(found, dict) or not isinstance(found.get("seen"), dict):
        return None
    until = found.get("until")
    if until is not None and not (isinstance(until, int | float) and 0 < until - clock() <= UNSTEADY_S):
        return None
    decode, prefill = found.get("decode"), found.get("prefill")
    if not (isinstance(decode, int) and isinstance(prefill, int) and decode >= 1 and prefill >= 1):
        return None
    return Threads(decode, prefill, steady=until is None)


def remember(store: Path, key: str, threads: Threads, *, steady: bool = True) -> None:
    """Write it down; a cache that cannot be written costs the next start a measurement, nothing else."""
    until = {} if steady else {"until": time.time() + UNSTEADY_S}
    finding = {"decode": threads.decode, "prefill": threads.prefill, "seen": threads.seen}
    store_measurement(store, key, finding | until)


def _store() -> Path:
    return cache_dir() / "threads.json"


def _set(trial: Trial, threads: Threads) -> Threads:
    trial.set_threads(threads.decode, threads.prefill)
    return threads
