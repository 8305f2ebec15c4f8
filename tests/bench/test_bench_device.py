"""A benchmark of models on a device with memory of its own: the same losses and answers, and where they lay."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.device.rpc_device import MIB, device_environment, serve_device
from tests.faults.tiny_ggufs import tiny_bpe

pytestmark = [pytest.mark.device, pytest.mark.long]
ROOT = Path(__file__).parents[2]


def run(model: Path, rows: Path, out: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", "from bench.cli import main; main()", "run", str(model), "--data", str(rows)]
    command += ["--out", str(out), "--max-tokens", "8", "--answers", "2", "--speed-repeats", "1", "--threads", "1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def test_the_report_says_what_lay_on_the_device_and_finds_the_processors_figures(
    rows_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(tiny_bpe().content())
    expected = run(model, rows_file, tmp_path / "cpu", dict(os.environ))
    with serve_device(1024 * MIB) as device:
        found = run(model, rows_file, tmp_path / "device", device_environment(device))
    (speed,), (plain,) = found["models"][0]["speed_runs"], expected["models"][0]["speed_runs"]
    assert (plain["gpu_layers"], plain["gpu_memory_bytes"]) == (0, 0)
    assert (speed["gpu_layers"], speed["all_layers"]) == (3, 3)
    assert speed["placement"].startswith("gpu layers 3 of 3")
    assert 0 < speed["gpu_memory_bytes"] < 512 * MIB
    perplexity, there = (each["models"][0]["results"]["perplexity"]["mean"] for each in (expected, found))
    assert there == pytest.approx(perplexity, rel=0.01)
    assert "on GPUs" in (tmp_path / "device" / "report.md").read_text(encoding="utf-8")
    assert "gpu layers 3 of 3" in (tmp_path / "device" / "report.md").read_text(encoding="utf-8")
    assert "on GPUs" not in (tmp_path / "cpu" / "report.md").read_text(encoding="utf-8")
