"""`--device`: what a run computes on, what it says of it, and that no GPU is left aside without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from finetune.sizing.devices import DEVICES
from gladstone.artifacts import read_manifest
from tests.finetune.test_finetune_cli import finetune, refused
from tests.tiny_models import tiny_recipe


@pytest.fixture
def beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists a T4; the installed torch cannot use it, since it is not there."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Tesla T4, 535.104.05, 7.5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("UNSLOTH_FORCE_CPU", "0")  # which a run may set in this process


@pytest.fixture
def recipe_file(tiny_base: Path, rows_file: Path, tmp_path: Path) -> Path:
    recipe = tiny_recipe(tiny_base, rows_file)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("command", ["run", "estimate"])
@pytest.mark.parametrize("recipe", ["tiny", "flan-t5-medical"])
def test_a_gpu_that_torch_cannot_use_stops_a_command_before_it_begins(
    command: str, recipe: str, beside_a_gpu: None, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    named = [recipe_file if recipe == "tiny" else recipe]
    out = ["--out", tmp_path / "out"] if command == "run" else []
    message = refused(finetune(command, *named, *out))
    for fact in ("Tesla T4", torch.__version__, "CUDA 13.0", "535.104.05", "pip install", "--device cpu"):
        assert fact in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_cuda_on_a_machine_without_it_is_one_error(command: str, recipe_file: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "no GPU is found" in refused(finetune(command, recipe_file, "--device", "cuda"))


@pytest.mark.slow
def test_a_run_names_the_gpu_that_it_does_not_use_and_records_what_it_computed_on(
    beside_a_gpu: None, recipe_file: Path, tmp_path: Path
) -> None:
    if torch.version.cuda:
        pytest.skip("this torch is built for CUDA")
    result = finetune("run", recipe_file, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "GPU not used: Tesla T4" in result.stderr
    assert f"torch {torch.__version__} for CPUs only; unsloth 20" in result.stderr
    facts = read_manifest(tmp_path / "out").facts
    assert facts["machine"]["kind"] == facts["backend"]["device"] == "cpu"
    assert facts["machine"]["driver"] == "535.104.05"
    assert facts["machine"]["torch"] == torch.__version__
    assert facts["backend"]["library"].startswith("unsloth 20")
    assert facts["backend"]["precision"] == facts["dtype"]


def test_unsloths_refusal_of_a_machine_is_one_message(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune", "run", str(recipe_file), "--out", str(tmp_path / "out")]
    settings = os.environ | {"UNSLOTH_DISABLE_CPU_FALLBACK": "1", "UNSLOTH_FORCE_CPU": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error: Unsloth cannot train here: " in done.stderr
    assert "--device cpu" in done.stderr


def test_the_estimate_says_which_devices_need_another_build_of_torch() -> None:
    assert {name for name, device in DEVICES.items() if device.note} == {"p100", "v100"}
    for name in ("p100", "v100"):
        assert "whl/cu126" in DEVICES[name].note
    result = finetune("estimate", "tinyllama-qlora", "--device", "p100")
    assert result.exit_code == 0, result.output
    assert DEVICES["p100"].note in result.stdout
