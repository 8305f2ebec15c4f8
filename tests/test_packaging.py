"""What a user gets from the wheel, and what a command says when its extra is missing."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"finetune", "export", "ui", "ray", "trackers", "gpu", "dev", "all"}
HIDE_TORCH = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {hidden} else found(name, *rest)
from {module} import main
main({arguments}, prog_name="{program}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("gladstone-*.whl")))


def test_the_wheel_holds_every_file_that_the_packages_read(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in ("gladstone", "finetune", "export", "runtime", "bench"):
        tracked = subprocess.run(["git", "ls-files", package], cwd=ROOT, capture_output=True, text=True, check=True)
        assert tracked.stdout.split(), package
        assert set(tracked.stdout.split()) <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "requirements/"))]


def test_the_base_installation_needs_no_torch_and_every_extra_exists(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    needs = metadata.get_all("Requires-Dist", [])
    base = [need for need in needs if "extra ==" not in need]
    assert any(need.startswith("llama-cpp-python") for need in base)
    assert not [need for need in base if need.startswith(("torch", "transformers", "unsloth", "datasets"))]


def test_the_console_scripts_are_the_documented_ones(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = wheel.read(name).decode().split("\n")
    assert {line.partition(" = ")[0] for line in lines if " = " in line} == {
        "gladstone",
        "finetune",
        "runtime",
        "bench",
    }


@pytest.mark.parametrize(
    ("module", "program", "arguments", "extra"),
    [
        ("finetune.cli", "finetune", ["run"], "finetune"),
        ("export.cli", "gladstone export", ["gguf", "runs/none"], "export"),
    ],
)
def test_a_stage_without_its_extra_says_which_pip_install_brings_it(
    module: str, program: str, arguments: list[str], extra: str
) -> None:
    code = HIDE_TORCH.format(hidden={"torch", "transformers"}, module=module, program=program, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch" in done.stderr
    assert f"pip install 'gladstone[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
