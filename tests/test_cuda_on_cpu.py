"""The fixture `cuda_on_cpu` itself: a real command takes the way of a GPU in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gladstone.artifacts import check_files, read_manifest
from scripts.interpreter import available
from tests.families import write_family

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.long, pytest.mark.skipif(not available(), reason="no triton for this machine")]


def test_a_command_trains_samples_and_finishes_on_the_way_of_a_gpu(tmp_path: Path) -> None:
    rows = [
        {"question": f"Is {word} good?", "answer": f"Yes, {word}."}
        for word in ("rest", "salt", "milk", "tea", "air", "rice")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"base.model={write_family('tinyllama', tmp_path / 'base')}", "base.load_in_4bit=false", "base.max_tokens=64",
        "training.max_steps=2", "training.batch_size=2", "training.accumulation=1", "training.optimizer=adamw_torch",
        "training.evaluations=1", "training.samples=1", "training.sample_tokens=2", "data.test=1", "data.validation=1",
        "data.duplicates.similarity=null",
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "tests.cuda_on_cpu", "--capability", "7.5", "--", "-m", "finetune", "run", "tinyllama-qlora",
        "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + (tmp_path / "run" / "train.log").read_text()
    manifest = read_manifest(tmp_path / "run")
    check_files(tmp_path / "run", manifest)
    assert (manifest.facts["device"], manifest.facts["dtype"]) == ("cuda", "float16")
    assert manifest.facts["rows_padded"]
    assert manifest.facts["steps"] == 2
