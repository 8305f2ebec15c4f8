"""One training on two processes of this machine, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from finetune.model.distributed import SINGLE_PROCESS, DistributedContext
from gladstone.artifacts import check_files, read_manifest
from tests.faults.forked import Server
from tests.tiny_models import tiny_recipe, write_rows_file
from tests.waiting import PATIENCE_S, wait_until

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "finetune")
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29617", "-m", "finetune",
)  # fmt: skip


def test_shares_are_all_rows_once_and_of_equal_size() -> None:
    rows = list(range(11))
    shares = [DistributedContext(rank, 4).own_part(rows) for rank in range(4)]
    assert sorted(row for share in shares for row in share) == rows
    assert {len(share) for share in shares} == {2, 3}


def test_a_process_alone_talks_to_nobody() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    SINGLE_PROCESS.all_reduce_gradients([weight])
    assert weight.grad is None
    assert SINGLE_PROCESS.all_reduce_sum(1.5, 2) == [1.5, 2]
    assert SINGLE_PROCESS.broadcast("why") == "why"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    training = {"max_steps": 6, "batch_size": 3, "accumulation": 2, "checkpoint_steps": 2}
    path = folder / "tiny.yaml"
    made = tiny_recipe(tiny_base, write_rows_file(folder / "rows.jsonl"), training=training)
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, server: Server) -> list[dict[str, Any]]:
    code, _, told = server.run("run", recipe, "--out", recipe.parent / "alone")
    assert code == 0, told
    return metrics(recipe.parent / "alone")


def call(launch: tuple[str, ...], recipe: Path, out: Path, *more: str, sharded: bool = False) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": str(sharded).lower()}
    done = subprocess.run(
        [*launch, "run", str(recipe), "--out", str(out), *more],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_equal(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [line["kind"] for line in found] == [line["kind"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["loss_nats_per_token"] == pytest.approx(other["loss_nats_per_token"], rel=1e-6)
        assert one.get("tokens") == other.get("tokens")
        assert one.get("target_tokens") == other.get("target_tokens")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.long)], ids=["DDP", "FSDP"])
def test_two_processes_have_the_losses_of_one(
    recipe: Path, alone: list[dict[str, Any]], tmp_path: Path, sharded: bool
) -> None:
    out = tmp_path / "out"
    printed = call(TORCHRUN, recipe, out, sharded=sharded)
    assert printed.count("Run folder: ") == 1
    check_equal(metrics(out), alone)
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert manifest.facts["processes"] == 2
    assert not (out / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.long
def test_what_two_processes_began_one_goes_on_with(recipe: Path, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = call(TORCHRUN, recipe, out, "--max-steps", "3")
    assert "Stopped by --max-steps 3 after 3 steps" in stopped
    call((sys.executable, "-m", "finetune"), recipe, out, "--resume")
    check_equal(metrics(out), alone)


@pytest.mark.slow
@pytest.mark.long
def test_the_launcher_ends_the_others_when_a_process_is_killed(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*TORCHRUN, "run", str(recipe), "--out", str(out), "--set", "training.max_steps=4000"]
    launcher = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until((out / "checkpoints" / "step-00000002").is_dir, "two steps are made")
    second = next(child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1")
    second.kill()
    _, told = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 1
    assert "Error: another process of this training ended" in told
    call((sys.executable, "-m", "finetune"), recipe, out, "--resume", "--max-steps", "1", "--set",
         "training.max_steps=4000")  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_accelerate_starts_it_too(recipe: Path, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    call(ACCELERATE, recipe, tmp_path / "out")
    check_equal(metrics(tmp_path / "out"), alone)
    assert read_manifest(tmp_path / "out").facts["processes"] == 2
