"""Other work on the machine: how OpenMP's threads wait beside it, and how much of it there is."""

import os
import subprocess
import sys

import pytest

from gladstone.openmp import FEW, SPINS, WAIT_POLICY
from gladstone.other_work import FELT, SHORTEST_S, OtherWork

LOADS = {
    "llama.cpp": "from gladstone.llama import library; library()",
    "torch after a training's preparations": "from finetune.trainable import prepare_environment as prepare; prepare(); import torch",
    "torch as the proof imports it": "from gladstone.importing import importing\nwith importing(): import torch",
    "llama.cpp, then torch": "from gladstone.llama import library; library(); import torch",
    "a command": "from gladstone.cli import main; main(['runtime', 'info', 'no.gguf'], standalone_mode=False)\nimport torch",
}  # fmt: skip


def _said(code: str, **environment: str) -> str:
    """What OpenMP says of its settings when it is loaded."""
    free = {name: value for name, value in os.environ.items() if name not in (SPINS, WAIT_POLICY)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=free | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
@pytest.mark.parametrize("code", LOADS.values(), ids=LOADS)
def test_threads_spin_briefly_in_every_kind_of_process(code: str) -> None:
    said = _said(code)
    assert f"{SPINS} = '{FEW}'" in said
    assert said.count(SPINS) == 1  # llama.cpp and torch use one library


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
def test_what_the_user_says_of_waiting_stays() -> None:
    assert f"{SPINS} = '77'" in _said(LOADS["llama.cpp"], GOMP_SPINCOUNT="77")
    assert f"{SPINS} = '0'" in _said(LOADS["llama.cpp"], OMP_WAIT_POLICY="passive")


def test_other_work_is_what_processors_did_beyond_our_own() -> None:
    now_s, busy_s = [100.0], [1000.0]
    others = OtherWork(lambda: busy_s[0], lambda: now_s[0])
    assert others.look() == others.mean() == 0
    now_s[0], busy_s[0] = 101.0, 1001.5
    assert (others.look(), others.mean()) == (1.5, 1.5)
    now_s[0] += SHORTEST_S / 2
    busy_s[0] += 100
    assert others.look() == 1.5  # too soon to look again
    now_s[0], busy_s[0] = 103.0, 1001.4  # ticks: the sum may seem to go back
    assert others.look() == 0
    assert others.mean() == pytest.approx(1.4 / 3)


def test_a_busy_program_is_seen_and_our_own_work_is_not() -> None:
    def work(seconds: float) -> None:
        end_s = others._clock() + seconds
        while others._clock() < end_s:
            pass

    others = OtherWork()
    others.look()
    work(SHORTEST_S)
    alone = others.look()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            work(2 * SHORTEST_S)
            beside = others.look()
        finally:
            busy.kill()
    assert beside > FELT
    assert alone < (os.cpu_count() or 1)
