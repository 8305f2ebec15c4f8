"""Commands on a device with memory of its own, each in a process of its own: what they show, and how they end."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gladstone.llamacpp.abort import last_line
from tests.device.rpc_device import MIB, Server, device_environment, serve_device
from tests.faults.tiny_ggufs import tiny_bpe

pytestmark = pytest.mark.device
ROOT = Path(__file__).parents[2]


@pytest.fixture
def device() -> Iterator[Server]:
    with serve_device(2048 * MIB) as server:
        yield server


def start(device: Server, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", *map(str, arguments)],
        env=device_environment(device), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_doctor_shows_the_device_and_measures_on_it(
    device: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "tiny.gguf"
    model.write_bytes(tiny_bpe().content())
    done = start(device, "doctor", model, "--json")
    output, errors = done.communicate()
    assert done.returncode == 0, errors
    report = json.loads(output)
    (gpu,) = report["gpus"]
    assert (gpu["description"], gpu["kind"], gpu["backend"]) == (device.endpoint, "gpu", "RPC")
    assert 0 < gpu["free_bytes"] <= gpu["total_bytes"] == 2048 * MIB
    assert report["devices"] == [device.endpoint]
    assert report["speed"]["gpu_layers"] == 3
    assert report["speed"]["placement"].startswith("gpu layers 3 of 3")
    assert report["speed"]["share_of_bandwidth"] is None


def test_a_device_that_goes_away_in_an_answer_ends_the_command_with_one_line(device: Server, smollm: Path) -> None:
    options = ["--max-tokens", "2000", "--context", "2048", "--threads", "1"]
    with start(device, "chat", smollm, *options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Write a long story about the heart.\n")
        process.stdin.flush()
        assert len(process.stdout.read(20)) == 20, "the answer has begun"
        device.process.kill()
        _, errors = process.communicate()
    assert process.returncode == 1, errors
    (told,) = [line for line in errors.splitlines() if line.startswith("Error: llama.cpp cannot go on: ")]
    assert errors.rstrip().endswith(told), "nothing after it: no listing of the stack"
    assert "ggml-rpc.cpp:" in told
    assert "Remote RPC server crashed" in told
    assert "--gpu-layers 0" in told
    assert "/ggml-rpc" not in told


def test_a_process_of_the_library_says_why_it_ends(device: Server, smollm: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from gladstone.llamacpp.model import Model\n"
        "with Model(Path(sys.argv[1]), gpu_layers=99) as model:\n"
        "    os.kill(int(sys.argv[2]), signal.SIGKILL)\n"
        "    from gladstone.llamacpp.context import Context\n"
        "    Context(model, 64)\n"
    )
    command = [sys.executable, "-c", code, str(smollm), str(device.process.pid)]
    done = subprocess.run(
        command, env=device_environment(device), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -6
    told = [line for line in done.stderr.splitlines() if not line.startswith("load_backend: ")]
    assert len(told) == 1, "no listing of the stack"
    assert "ggml-rpc.cpp:" in told[0]
    assert "Remote RPC server crashed" in told[0]


def test_the_last_line_is_one_line_without_the_folder_of_the_sources() -> None:
    assert last_line(b"/build/a b/ggml.c:12: GGML_ASSERT(x)\n failed\x1b[2J") == "ggml.c:12: GGML_ASSERT(x) failed␛[2J"
    assert last_line(b"C/x/ggml-cuda.cu:88: out of memory") == "ggml-cuda.cu:88: out of memory"
    assert last_line(None) == "it gave no reason"
