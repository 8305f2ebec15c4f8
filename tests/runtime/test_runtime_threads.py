"""Thread benchmarks on simulated machines with a clock of their own, and on the embedded model."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.gguf.header import GgufInfo, read_info
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model
from gladstone.machine.host import Cores, cache_dir, read_cores
from gladstone.machine.other_work import OtherWork
from runtime.machine.threads import (
    LIMIT_S,
    PREFILL_TOKENS,
    UNSTEADY_S,
    ThreadBenchmark,
    Threads,
    candidates,
    choose_threads,
    discard_threads,
    measure_threads,
    recall,
    remember,
    threads_key,
)

Times = Callable[[int], float]


@dataclass
class Machine:
    """A machine that takes `decode(threads)` seconds for a token, on a clock of its own."""

    decode: Times
    prefill: Times
    noise: Callable[[], float] = lambda: 1.0
    now_s: float = 0.0
    threads: tuple[int, int] = (0, 0)
    calls: int = 0
    tried: set[int] = field(default_factory=set)

    def clock(self) -> float:
        return self.now_s

    def benchmark(self) -> ThreadBenchmark:
        decode, prefill = lambda: self._work(self.decode, 0), lambda: self._work(self.prefill, 1)
        return ThreadBenchmark(self._set, decode, prefill, self.clock)

    def _set(self, decode: int, prefill: int) -> None:
        self.threads = decode, prefill

    def _work(self, times: Times, which: int) -> None:
        self.calls += 1
        self.tried.add(self.threads[which])
        self.now_s += times(self.threads[which]) * self.noise()


def shared(physical: int, work_s: float, loss: float = 0.15) -> Times:
    """A token on so many physical cores: two threads on one core are slower than one."""
    return lambda count: work_s / min(count, physical) * (1 + loss * max(0, count - physical) / physical)


def saturated(work_s: float, enough: int) -> Times:
    """A token that waits for memory: more threads than `enough` only get in each other's way."""
    return lambda count: work_s / min(count, enough) * (1 + 0.02 * max(0, count - enough))


def info(parameters: int = 1000) -> GgufInfo:
    return GgufInfo(Path("m.gguf"), (), "llama", None, parameters, "Q4_K_M", 1, 1, 1, {}, None, None)


def test_hyper_threads_that_slow_decoding_down_are_not_used() -> None:
    machine = Machine(shared(4, 0.01), lambda count: 0.02 / count)
    threads, steady = measure_threads(machine.benchmark(), candidates(Cores(8, 8, 4)))
    assert (threads, steady) == (Threads(decode=4, prefill=8), True)


def test_few_threads_are_enough_where_memory_is_the_limit() -> None:
    machine = Machine(saturated(0.02, 16), lambda count: 0.05 / count)
    threads, _ = measure_threads(machine.benchmark(), candidates(Cores(128, 128, 64)))
    assert threads == Threads(decode=16, prefill=128)


def test_of_two_counts_that_are_as_fast_the_smaller_one_is_taken() -> None:
    machine = Machine(lambda count: 0.01 * (1 - 0.001 * count), lambda count: 0.01)
    threads, _ = measure_threads(machine.benchmark(), (8, 4, 2))
    assert threads == Threads(2, 8)


def test_what_disturbs_half_of_the_times_does_not_change_the_answer() -> None:
    seen_through = 0
    for seed in range(20):
        chance = random.Random(seed)
        noise = lambda chance=chance: 1.0 if chance.random() < 0.5 else chance.uniform(1.5, 8)  # noqa: E731
        machine = Machine(shared(4, 0.002), lambda count: 0.004 / count, noise)
        threads, steady = measure_threads(machine.benchmark(), candidates(Cores(8, 8, 4)))
        assert threads.decode == 4, seed
        seen_through += not steady
    assert seen_through >= 15  # most such measurements are not believed for long


@given(
    token_s=st.floats(1e-4, 3.0),
    physical=st.integers(1, 96),
    loss=st.floats(0, 2),
    prompt=st.floats(1, 6),
)
def test_measuring_ends_in_time_whatever_the_machine(token_s: float, physical: int, loss: float, prompt: float) -> None:
    decode = shared(physical, token_s * physical, loss)
    machine = Machine(decode, lambda count: prompt * decode(count))
    counts = candidates(Cores(2 * physical, 2 * physical, physical))
    threads, _ = measure_threads(machine.benchmark(), counts)
    slowest_s = max(decode(count) for count in counts)
    # the first count is always timed, and one more step may begin that turns out longer than all before it
    assert machine.now_s <= max(LIMIT_S, 2 * decode(counts[0])) + 2 * prompt * slowest_s + 1e-9
    assert threads.decode in machine.tried
    assert {threads.decode, threads.prefill} <= set(counts)


@given(st.integers(1, 256), st.integers(1, 256), st.floats(0.1, 300))
def test_candidates_are_few_and_possible(physical: int, smt: int, quota: float) -> None:
    cores = Cores(physical * 2, physical + min(smt, physical), physical, quota)
    found = candidates(cores)
    assert 1 <= len(found) <= 5
    assert all(1 <= count <= cores.usable for count in found)
    assert cores.usable in found


def test_on_one_core_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    machine = Machine(shared(1, 1), shared(1, 1))
    assert choose_threads(info(), "cpu", machine.benchmark(), Cores(8, 8, 4, quota=1.5)) == Threads(1, 1)
    assert (machine.calls, machine.threads, list(tmp_path.iterdir())) == (0, (1, 1), [])


def test_a_measurement_is_remembered_for_its_model_and_its_back_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    cores = Cores(4, 4, 4)
    first = Machine(lambda _count: 0.0, lambda _count: 0.0)
    threads = choose_threads(info(), "cpu", first.benchmark(), cores)
    assert first.calls > 0
    for model, backend, again in ((info(), "cpu", False), (info(2000), "cpu", True), (info(), "other", True)):
        machine = Machine(lambda _count: 0.01, lambda _count: 0.01)
        choose_threads(model, backend, machine.benchmark(), cores)
        assert bool(machine.calls) is again
        assert machine.threads == (threads.decode, threads.prefill) or again
    assert len(json.loads((tmp_path / "threads.json").read_text())) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"k": 1}',
        '{"k": {"decode": 2, "prefill": 3}}',
        '{"k": null}',
        '{"k": {"decode": 0, "prefill": 1}}',
        '{"k": {"decode": 1}}',
    ],
)
def test_a_damaged_memory_is_measured_anew(tmp_path: Path, text: str) -> None:
    store = tmp_path / "threads.json"
    store.write_text(text)
    assert recall(store, "k") is None
    remember(store, "k", Threads(2, 3))
    assert recall(store, "k") == Threads(2, 3)


def test_what_was_measured_beside_other_work_is_not_believed_for_long(tmp_path: Path) -> None:
    store = tmp_path / "threads.json"
    remember(store, "k", Threads(2, 3), steady=False)
    assert recall(store, "k") == Threads(2, 3)
    now_s = time.time()
    for off_s in (UNSTEADY_S + 1, -3600.0):  # later, and after the clock was set back
        assert recall(store, "k", lambda off_s=off_s: now_s + off_s) is None  # type: ignore[misc]


class Busy(OtherWork):
    """Others have taken so many processors."""

    def __init__(self, processors: float) -> None:
        self.now_s = 0.0
        super().__init__(lambda: processors * self.now_s, self._tick)

    def _tick(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_a_measurement_beside_other_work_is_no_steady_one_however_even_its_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    for processors, steady in ((1.0, False), (0.0, True)):
        machine = Machine(lambda _count: 0.01, lambda _count: 0.01)
        threads = choose_threads(info(int(processors)), "cpu", machine.benchmark(), Cores(4, 4, 4), Busy(processors))
        assert threads.steady is steady
        again = choose_threads(info(int(processors)), "cpu", machine.benchmark(), Cores(4, 4, 4), Busy(0.0))
        assert again.steady is steady  # remembered with what was seen
    found = json.loads((tmp_path / "threads.json").read_text())
    assert [sorted(each["seen"]["decode"]) for each in found.values()] == [["1", "2", "3", "4"]] * 2
    assert ["until" in each for each in found.values()] == [True, False]


def test_what_was_found_wrong_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    cores = read_cores()
    remember(tmp_path / "threads.json", threads_key(info(), "cpu", cores), Threads(1, 1))
    discard_threads(info(), "cpu")
    machine = Machine(lambda _count: 0.01, lambda _count: 0.01)
    choose_threads(info(), "cpu", machine.benchmark(), cores)
    assert machine.calls or cores.usable == 1


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file" / "threads.json", "k", Threads(2, 3))
    assert recall(tmp_path / "file" / "threads.json", "k") is None


def test_the_embedded_model_is_measured_and_computes_the_same_with_the_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, embedded_gguf: Path
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    with Model(embedded_gguf) as model, Context(model, 256, threads=1) as context:
        prompt = model.tokenize("The doctor listened to the heart and wrote down what he had heard in the")
        prompt = prompt[:PREFILL_TOKENS]
        context.decode(prompt, 0)
        likeliest = context.logits().argmax()

        def evaluate(tokens: list[int]) -> None:
            context.forget()
            context.decode(tokens, 0)

        benchmark = ThreadBenchmark(
            context.use_threads,
            lambda: evaluate(prompt[:1]),
            lambda: evaluate(prompt),
        )
        threads = choose_threads(read_info(embedded_gguf), "test", benchmark, Cores(2, 2, 2))
        assert {threads.decode, threads.prefill} <= {1, 2}
        evaluate(prompt)
        assert context.logits().argmax() == likeliest
    assert cache_dir() == tmp_path
