"""Threads beside other work: their placement and their time slices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model
from gladstone.machine.host import Cores
from gladstone.machine.openmp import USERS as WAITING
from gladstone.machine.thread_placement import MAX_CPUS, USERS, can_place_threads, cpu_per_thread, placed_thread_count
from gladstone.machine.thread_tuner import InitialThreads, ThreadTuner

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="affinity and turns are asked of Linux")
TWO = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) != 2, reason="needs exactly two processors"
)
# where the threads of a team may run: while placed, and afterwards
RUNS = """
import ctypes, json, os
from gladstone.llamacpp.library import library; library()
from gladstone.machine.openmp import loaded_library
from gladstone.machine.thread_placement import place_threads
def runs():
    found = []
    team = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(sorted(os.sched_getaffinity(0))))
    loaded_library().GOMP_parallel(team, None, ctypes.c_uint(4), 0)
    return sorted(found)
with place_threads(4):
    inside = runs()
with place_threads(3):  # not a placement for two CPUs
    other = sorted(os.sched_getaffinity(0))
print(json.dumps([inside, runs(), other]))
"""
TURNS = """
import ctypes, json, platform, threading
from gladstone.machine.time_slices import NUMBERS, TimeSlices, _Attributes
def turn():
    found = _Attributes()
    ctypes.CDLL(None).syscall(NUMBERS[platform.machine()][0], 0, ctypes.byref(found), ctypes.sizeof(found), 0)
    return found.runtime, found.nice, found.policy
slices, before = TimeSlices(), turn()
slices.set_short(True)
short = turn()
inherited = []
thread = threading.Thread(target=lambda: inherited.append(turn())); thread.start(); thread.join()
slices.set_short(True)
slices.set_short(False)
print(json.dumps([before, short, inherited[0], turn()]))
"""


def _said(code: str) -> str:
    free = {name: value for name, value in os.environ.items() if name not in (*USERS, *WAITING)}
    return subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=True).stdout


@given(st.integers(2, MAX_CPUS), st.floats(0, 2 * MAX_CPUS))
def test_a_processor_that_others_use_has_one_thread_and_a_free_one_three(processors: int, others: float) -> None:
    threads = placed_thread_count(processors, others)
    if threads is None:
        assert round(others) < processors / 2
        return
    where = cpu_per_thread(list(range(processors)), threads)
    assert len(where) == threads > processors
    counts = [where.count(number) for number in range(processors)]
    assert set(counts) == {1, 3}
    assert counts.count(1) == min(max(1, round(others)), processors - 1)


def test_threads_are_spread_on_a_few_processors_that_are_all_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*USERS, *WAITING):
        monkeypatch.delenv(name, raising=False)
    assert can_place_threads(Cores(2, 2, 2)) is (sys.platform == "linux")
    assert not can_place_threads(Cores(1, 1, 1))
    assert not can_place_threads(Cores(16, 16, 8))
    assert not can_place_threads(Cores(4, 4, 4, quota=2.0))
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    assert not can_place_threads(Cores(2, 2, 2))


@LINUX
@TWO
def test_threads_run_where_they_are_spread_and_anywhere_afterwards() -> None:
    first, second = sorted(os.sched_getaffinity(0))
    inside, afterwards, other = json.loads(_said(RUNS))
    assert inside in ([[first]] * 3 + [[second]], [[first]] + [[second]] * 3)
    assert afterwards == [[first, second]] * 4
    assert other == [first, second]


@LINUX
def test_turns_are_short_while_it_is_asked_for_and_nothing_else_changes() -> None:
    before, short, inherited, after = json.loads(_said(TURNS))
    assert before == after
    assert short == inherited
    assert short[1:] == before[1:]  # nice value and policy


@TWO
def test_spread_threads_compute_the_same_bits(embedded_gguf: Path) -> None:
    tokens = [(37 * number) % 250 for number in range(64)]

    def read(others: float) -> tuple[int, npt.NDArray[np.float32]]:
        tuner = ThreadTuner((1, 2), InitialThreads(2, 2), lambda: others, places_threads=True)
        with Model(embedded_gguf) as model, Context(model, 64) as context:
            context.adapt(tuner)
            context.decode(tokens, 0, all_logits=True)
            return tuner.threads(64), context.all_logits(64).copy()

    (two, quiet), (four, beside) = read(0.0), read(1.0)
    assert (two, four) == (2, 4)
    assert np.array_equal(quiet, beside)
