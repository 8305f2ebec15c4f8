"""Every command in README.md runs, in order, on the embedded model; only made small."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.config.load import load_recipe
from finetune.data.sources import source_file

ROOT = Path(__file__).resolve().parent.parent
SMALL_RUN = "--set training.max_steps=2 --set training.batch_size=2 --set data.max_rows=60 --set training.evaluations=1"
SMALLER = {
    "finetune run": SMALL_RUN,
    "bench run": "--rows 4 --answers 2 --max-tokens 16 --speed-repeats 1",
    "runtime ask": "--max-tokens 16",
    "runtime chat": "--max-tokens 16",
}


def readme_commands() -> list[str]:
    """The lines of the README's ```sh blocks."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def made_small(command: str) -> str:
    return command + next((f" {extra}" for start, extra in SMALLER.items() if start in command), "")


REPEATED = ("runs/other", "runs/session", "gladstone export verify")  # kinds that other commands and tests cover


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    run_all(tmp_path, [line for line in readme_commands() if not any(kind in line for kind in REPEATED)])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    run_all(tmp_path, readme_commands())


def run_all(tmp_path: Path, commands: list[str]) -> None:
    rows = [
        json.loads(line)
        for line in source_file(load_recipe(None, []).data.sources[0]).read_text(encoding="utf-8").splitlines()
    ]
    alpaca = [{"instruction": row["question"], "input": "", "output": row["answer"]} for row in rows[:60]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca))
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    assert len(commands) >= 10
    for command in commands:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", made_small(command)],
            cwd=tmp_path,
            env=environment,
            input="What is anaemia?\n/exit\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert done.stdout.strip(), f"{command} printed nothing"
    proof = json.loads((tmp_path / "runs/mine/gguf/proof.json").read_text())
    assert proof["passed"] is True
    assert (tmp_path / "runs/mine/report/report.html").is_file()


def test_the_readme_names_only_options_that_exist() -> None:
    pages = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in readme_commands():
        for word in shlex.split(command):
            if word.startswith("--"):
                assert word in pages, f"{word} in {command!r}"
