"""One training on two processes: who prepares, who waits, who samples, and what happens when one of them ends.

The processes are forked and find each other by the variables that torchrun sets, without its agent, which would end
them all as soon as one fails: here each notices by itself.
"""

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config.load import load_recipe
from finetune.config.schema import Recipe
from finetune.model.sharding import check_sharding
from gladstone.artifacts import check_files, read_manifest
from gladstone.errors import UnsupportedError
from tests.families import write_family
from tests.faults.forked import Child, Server, spoil_gradient
from tests.tiny_models import tiny_recipe, write_rows_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="fork")]

SLOWLY = """
import time, finetune.run
prepare = finetune.run.prepare
def slowly(*a):
    time.sleep(4)
    return prepare(*a)
finetune.run.prepare = slowly
"""
NO_ANSWERS = """
import finetune.train.evaluation as e
def answer(*a): raise AssertionError("only the first process generates")
e.answer = answer
"""
NO_GRADIENT = spoil_gradient("PackedForward", 3)
BEGINS_ELSEWHERE = """
import finetune.train.loop as l
make = l.make_optimizer
def moved(model, training):
    for parameter in model.parameters():
        parameter.data += 0.01 * parameter.requires_grad
    return make(model, training)
l.make_optimizer = moved
"""
ENDS_BEFORE_IT_IS_READY = """
import os, finetune.run
def killed(*a): os.kill(os.getpid(), 9)
finetune.run.read_inputs = killed
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    return write_family("llama3", tmp_path_factory.mktemp("base") / "base")


def write_recipe(folder: Path, base: Path, **training: Any) -> Path:
    settings = {"max_steps": 6, "batch_size": 3, "accumulation": 2, "checkpoint_steps": 2, "evaluations": 2}
    path = folder / "tiny.yaml"
    made = tiny_recipe(base, write_rows_file(folder / "rows.jsonl"), training=settings | training)
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), base)


@pytest.fixture(scope="module")
def alone(recipe: Path, server: Server) -> list[dict[str, Any]]:
    out = recipe.parent / "alone"
    code, _, told = server.run("run", recipe, "--out", out)
    assert code == 0, told
    return metrics(out)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(server: Server, *arguments: Any, before: Sequence[str] = ("", ""), sharded: bool = False) -> list[Child]:
    """Start the same command as two processes of one training, each after its own code."""
    port = free_port()
    children = []
    for rank, code in enumerate(before):
        variables = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "ACCELERATE_USE_FSDP": str(sharded).lower(),
        }  # fmt: skip
        settings = {name: str(value) for name, value in variables.items()}
        children.append(server.start(*arguments, before=f"import os\nos.environ.update({settings!r})\n{code}"))
    return children


def finish(children: Sequence[Child]) -> None:
    for child in children:
        assert child.wait() == 0, child.told


def check_equal(found: list[dict[str, Any]], wanted: list[dict[str, Any]], rel: float = 1e-5) -> None:
    assert [line["kind"] for line in found] == [line["kind"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in ("loss_nats_per_token", "grad_norm"):
            assert (name in one) == (name in other)
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), rel=rel)
        assert [one.get(name) for name in ("tokens", "target_tokens")] == [
            other.get(name) for name in ("tokens", "target_tokens")
        ]


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_have_the_losses_of_one(
    server: Server, recipe: Path, alone: list[dict[str, Any]], tmp_path: Path, sharded: bool
) -> None:
    lead, other = start(server, "run", recipe, "--out", tmp_path / "out", sharded=sharded)
    finish([lead, other])
    check_equal(metrics(tmp_path / "out"), alone)
    manifest = read_manifest(tmp_path / "out")
    check_files(tmp_path / "out", manifest)
    assert manifest.facts["processes"] == 2
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert lead.printed.count("Run folder: ") == 1
    assert other.printed == ""
    assert "Error" not in lead.told + other.told


def test_two_processes_go_on_where_two_stopped(
    server: Server, recipe: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("run", recipe, "--out", out, "--max-steps", "3")
    lead, other = start(server, *arguments, before=("", BEGINS_ELSEWHERE))  # all begin with the first one's adapter
    finish([lead, other])
    assert "Stopped by --max-steps 3 after 3 steps" in lead.printed
    finish(start(server, "run", recipe, "--out", out, "--resume"))
    check_equal(metrics(out), alone)


def test_nobody_times_out_while_the_first_process_prepares(server: Server, base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, max_steps=1, process_timeout_minutes=0.05)  # a second less than it sleeps
    finish(start(server, "run", recipe, "--out", tmp_path / "out", before=(SLOWLY, "")))
    assert len(metrics(tmp_path / "out")) == 2


def test_only_the_first_process_samples(server: Server, base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, max_steps=2, samples=1, sample_tokens=4)
    finish(start(server, "run", recipe, "--out", tmp_path / "out", before=("", NO_ANSWERS)))
    assert [line["kind"] for line in metrics(tmp_path / "out")].count("sample") == 2


def ended(children: Sequence[Child]) -> list[tuple[int, str]]:
    """The exit code and the message of each process; none hangs."""
    codes = [child.wait() for child in children]
    assert not any("Traceback" in child.told for child in children), [child.told for child in children]
    return [(code, child.told[child.told.find("Error: ") :]) for code, child in zip(codes, children, strict=True)]


def test_an_error_while_the_rows_are_prepared_ends_all(server: Server, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("not JSON\n")
    arguments = ("run", recipe, "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "out")
    lead, other = ended(start(server, *arguments))
    assert lead[0] == other[0] == 1
    assert re.match(r"Error: /.*/bad\.jsonl: no row can be read", lead[1])
    assert re.match(r"Error: process 2 of 2: .*(process 1 ended|another process of this training ended)", other[1])


def test_a_process_that_ends_before_it_is_ready_is_named(server: Server, base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base, max_steps=1, process_timeout_minutes=0.05)
    lead, other = start(server, "run", recipe, "--out", tmp_path / "out", before=("", ENDS_BEFORE_IT_IS_READY))
    assert other.wait() == -signal.SIGKILL
    (told,) = ended([lead])
    assert told[0] == 1
    assert re.match(r"Error: waited 0\.05 minutes .*process 2 is not.* training\.process_timeout_minutes", told[1])


def test_a_gradient_that_is_not_finite_in_one_process_ends_both(server: Server, recipe: Path, tmp_path: Path) -> None:
    lead, other = ended(start(server, "run", recipe, "--out", tmp_path / "out", before=("", NO_GRADIENT)))
    found = r"the gradient of step 3 is nan: .*rows: /.*/rows\.jsonl:\d+, "
    assert re.match(f"Error: {found}", lead[1])
    assert re.match(f"Error: process 2 of 2: {found}", other[1])
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")) == ["step-00000002"]


def steps_are_made(out: Path, count: int) -> Callable[[], bool]:
    return (out / "checkpoints" / f"step-{count:08}").is_dir


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_when_a_process_is_killed_the_other_ends_and_the_run_goes_on_from_its_checkpoint(
    server: Server, base: Path, tmp_path: Path, killed: int
) -> None:
    recipe, out = write_recipe(tmp_path, base, max_steps=400, checkpoint_steps=2), tmp_path / "out"
    children = start(server, "run", recipe, "--out", out)
    children[0].wait_until(steps_are_made(out, 2))
    children[killed].send(signal.SIGKILL)
    begin_s = time.monotonic()
    assert children[killed].wait() == -signal.SIGKILL
    ((code, message),) = ended([children[1 - killed]])
    assert code == 1
    assert "another process of this training ended, or did not answer within training.process_timeout" in message
    assert time.monotonic() - begin_s < 60  # of the 30 minutes that a process waits
    resumed = start(server, "run", recipe, "--out", out, "--resume", "--max-steps", "1")
    finish(resumed)
    assert "after 1 step" in resumed[0].printed or "Stopped by --max-steps 1" in resumed[0].printed


def made(changes: Sequence[str]) -> Recipe:
    return load_recipe("demo-triage", ["base.load_in_4bit=false", *changes])


def test_sharding_what_cannot_be_sharded_is_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    import torch

    check_sharding(made(["base.load_in_4bit=true"]))  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_sharding(made(["base.load_in_4bit=true"]))  # no FSDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UnsupportedError, match=r"4-bit weights .* base\.load_in_4bit=false, or leave out FSDP"):
        check_sharding(made(["base.load_in_4bit=true"]))
    check_sharding(made([]))  # on a CPU the layers are those of transformers
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("embedded:smollm2-135m-instruct", str(base)):
        with pytest.raises(UnsupportedError, match=r"Unsloth's kernels .* Leave out FSDP .* base\.load_in_4bit=true"):
            check_sharding(made([f"base.model={name}"]))
    check_sharding(made([f"base.model={write_family('flan-t5', tmp_path / 't5')}"]))
    check_sharding(load_recipe("flan-t5-medical", []))
    with pytest.raises(UnsupportedError, match=r"mistralai/Mistral-7B-Instruct-v0\.2: on a GPU"):
        check_sharding(load_recipe("medbot-mistral-7b", ["base.load_in_4bit=false"]))
