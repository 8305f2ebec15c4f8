"""Other work on the machine: its measurement, and how OpenMP threads wait beside it."""

import os
import subprocess
import sys

import pytest

from gladstone.machine.openmp import USERS
from gladstone.machine.other_work import NOTICEABLE, SHORTEST_S, OtherWork

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
LOADS = {
    "llama.cpp": "from gladstone.llamacpp.library import library; library()",
    "torch": "import torch",
    "llama.cpp, then torch": "from gladstone.llamacpp.library import library; library(); import torch",
    "torch, then llama.cpp": "import torch; from gladstone.llamacpp.library import library; library()",
}
# processor time of ten empty operations of two threads, each followed by a pause in which they should sleep
SPENT = """
import ctypes, os, time
from gladstone.machine.openmp import SleepingThreads, loaded_library
library = loaded_library()
sleepers, nothing = SleepingThreads(library), ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
def spent():
    begin_s = time.process_time()
    for _ in range(10):
        library.GOMP_parallel(nothing, ctypes.create_string_buffer(1), ctypes.c_uint(2), 0)
        time.sleep(0.01)
    return time.process_time() - begin_s, len(os.listdir("/proc/self/task"))
for briefly in (False, True, True, False):
    sleepers.spin_briefly(briefly)
    time.sleep(0.05)
    print(*spent())
"""
WATCHED = """
import threading
from gladstone.machine.openmp import adapt_to_other_work, may_change_spinning
adapt_to_other_work(); adapt_to_other_work()
print(sum(each.name == "gladstone waiting" for each in threading.enumerate()), may_change_spinning())
"""


def _said(code: str, **environment: str) -> list[str]:
    free = {name: value for name, value in os.environ.items() if name not in USERS}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=free | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@LINUX
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_threads_spin_or_sleep_as_they_are_reported_in_every_kind_of_process(load: str) -> None:
    (first_s, first), (brief_s, brief), (again_s, again), (last_s, last) = (
        map(float, line.split()) for line in _said(load + SPENT)
    )
    assert max(brief_s, again_s) * 4 < min(first_s, last_s)
    assert first == last < brief == again  # the sleepers go when they are not needed


@LINUX
def test_other_work_is_watched_once_and_changes_nothing_where_the_user_says_how_to_wait() -> None:
    assert _said(WATCHED) == ["1 True"]
    assert _said(WATCHED, GOMP_SPINCOUNT="300") == ["1 False"]
    assert _said(WATCHED, OMP_WAIT_POLICY="active") == ["1 False"]


def test_other_work_is_what_processors_did_beyond_our_own() -> None:
    now_s, busy_s = [100.0], [1000.0]
    others = OtherWork(lambda: busy_s[0], lambda: now_s[0])
    assert others.measure() == others.mean() == 0
    now_s[0], busy_s[0] = 101.0, 1001.5
    assert (others.measure(), others.mean()) == (1.5, 1.5)
    now_s[0] += SHORTEST_S / 2
    busy_s[0] += 100
    assert others.measure() == 1.5  # too soon to look again
    now_s[0], busy_s[0] = 103.0, 1001.4  # ticks: the sum may seem to go back
    assert others.measure() == 0
    assert others.mean() == pytest.approx(1.4 / 3)


def test_a_busy_program_is_seen_and_our_own_work_is_not() -> None:
    def work(seconds: float) -> None:
        end_s = others._clock() + seconds
        while others._clock() < end_s:
            pass

    others = OtherWork()
    others.measure()
    work(SHORTEST_S)
    alone = others.measure()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            work(2 * SHORTEST_S)
            beside = others.measure()
        finally:
            busy.kill()
    assert beside > NOTICEABLE
    assert alone < (os.cpu_count() or 1)
