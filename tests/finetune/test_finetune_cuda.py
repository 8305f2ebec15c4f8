"""The way of a GPU, run on a processor (`cuda_on_cpu`): families by precision by recomputing of activations.

Each case loads, labels, takes loss and gradient, samples, steps, saves and resumes in a process whose CPU passes for a
GPU. One case runs always, that of transposed weights in float16, the whole table with `long`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from scripts.interpreter import available
from tests.families import FAMILIES

ROOT = Path(__file__).parents[2]
T4, A100 = "7.5", "8.0"
SHORT = ((T4, "distilgpt2:on"),)
ALL = [(card, f"{family}:{way}") for card in (T4, A100) for family in FAMILIES for way in ("off", "on")]
LONG = [pytest.param(*case, marks=pytest.mark.long) for case in ALL if case not in SHORT]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not available(), reason="no triton for this machine")]
Find = Callable[[str, str], dict[str, Any]]


def child(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.finetune.cuda_cases", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Find:
    """The facts of a case; all cases of this session that are on one card run in one process."""
    folder = tmp_path_factory.mktemp("cuda")
    here = [item for item in request.session.items if item.path == Path(__file__) and isinstance(item, pytest.Function)]
    asked = [item.callspec.params for item in here if "card" in item.callspec.params]
    child("PLAIN", str(folder), *(str(each["case"]) for each in asked))

    @cache
    def of_card(card: str) -> dict[str, dict[str, Any]]:
        told = child(card, str(folder), *(str(each["case"]) for each in asked if each["card"] == card))
        lines = [line.removeprefix("CASE ") for line in told.splitlines() if line.startswith("CASE ")]
        return {each["case"]: each for each in map(json.loads, lines)}

    return lambda card, case: of_card(card)[case]


@pytest.mark.parametrize(("card", "case"), [*SHORT, *LONG])
def test_a_family_trains_on_a_gpu_as_plain_transformers_do(card: str, case: str, found: Find) -> None:
    facts = found(card, case)
    assert "error" not in facts, facts["error"]
    family, _, recomputing = case.partition(":")
    assert facts["device"] == "cuda"
    forced = family == "gemma3" and card == T4  # float16 overflows in it: Unsloth computes in float32
    assert facts["forced_float32"] is forced
    assert facts["scaled"] is (card == T4 and family not in ("gemma3", "flan-t5"))
    assert facts["loss"] == pytest.approx(facts["plain_loss"], rel=1e-2)
    assert facts["cosine"] > 0.999
    assert facts["difference"] < 0.04
    if not forced:  # Unsloth's own trainer scales nothing there
        # in a step of 16,384 scored tokens nothing underflows; bfloat16 rounds at the eighth bit, whatever the scale
        assert facts["difference_many"] < (5e-3 if card == T4 else 2e-2)
    # sampling leaves no trace
    assert facts["before"] == facts["after"]
    assert set(facts["before"]["recomputing"].values()) == {recomputing == "on"}
    assert facts["before"]["marked"] == []
    assert facts["before"]["training"]
    assert facts["rows_of_embedding"] == facts["vocabulary"]
    assert facts["loss_again"] == pytest.approx(facts["loss"], rel=1e-4)
    assert facts["difference_again"] < 1e-3
    # a run that stopped ends as an unbroken one
    assert facts["finite"]
    assert facts["resumed"] == pytest.approx(facts["losses"], rel=1e-3)
    assert facts["weights_differ"] < 1e-4
    # the adapter is one that every reader of adapters understands
    assert sorted(facts["targets"]) == sorted(facts["wanted"])
