"""The cells of notebooks/kaggle.ipynb and notebooks/colab.ipynb, run whole on a tiny model, without their platforms."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import yaml

from gladstone.artifacts import check_files, read_manifest
from gladstone.notebook import NotebookError
from tests.notebook_cells import code, run_all, run_cell
from tests.tiny_models import tiny_recipe, write_rows_file
from tests.waiting import PATIENCE_S, wait_until
from tests.warm_python import PYTHON

pytestmark = pytest.mark.usefixtures("warm_children")
TOKEN = "hf_thisIsNoTokenOfAnybody"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    training = {"max_steps": 30, "checkpoint_steps": 2, "evaluations": 1}
    made = tiny_recipe(tiny_base, write_rows_file(folder / "rows.jsonl"), training=training)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.fixture(scope="module")
def calls() -> Iterator[list[tuple[str, ...]]]:
    """Stand-ins for the modules that only the platforms have; the calls that reach them."""
    calls: list[tuple[str, ...]] = []

    def get_secret(label: str) -> str:
        calls.append(("secret", label))
        if label != "HF_TOKEN":
            raise RuntimeError(f"No user secrets exist for kernel id 1 and label {label}")
        return TOKEN

    functions: dict[str, dict[str, Any]] = {
        "kaggle_secrets": {"UserSecretsClient": type("Client", (), {"get_secret": lambda _, label: get_secret(label)})},
        "google": {},
        "google.colab": {},
        "google.colab.userdata": {"get": get_secret},
        "google.colab.drive": {"mount": lambda place: calls.append(("mount", place))},
        "google.colab.files": {"download": lambda path: calls.append(("download", path))},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, named in functions.items():
            module = ModuleType(name)
            module.__dict__.update(named)
            patch.setitem(sys.modules, name, module)
            parent, _, own = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, module)
        patch.setenv("HF_TOKEN", "")  # what a cell sets there ends with the tests
        yield calls


def parameters(recipe: Path, folder: Path, **others: object) -> dict[str, object]:
    """What CI injects: a tiny model and its rows, minutes, folders of the test."""
    small = {"RECIPE": str(recipe), "CHANGES": [], "HOURS": 1, "QUANTS": ["q8_0"], "DEVICE": "cpu"}
    return small | {"KEEP": str(folder / "kept"), "SCRATCH": str(folder / "scratch")} | others


def kill_at_checkpoint(run: Path) -> threading.Thread:
    """Kill the training once it has saved a checkpoint, as the end of a session does."""

    def kill() -> None:
        wait_until(lambda: any(run.glob("checkpoints/step-*")), "the first checkpoint")
        for child in psutil.Process().children():
            if "run" in child.cmdline():
                child.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@dataclass(frozen=True)
class Session:
    """The folders of a notebook, and what its cells printed before and after the session was killed."""

    folder: Path
    before: str
    after: str


@pytest.fixture(scope="module")
def kaggle(recipe: Path, calls: list[tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Kaggle's notebook: killed in the middle of the training, then all cells run again."""
    folder = tmp_path_factory.mktemp("kaggle")
    chosen = parameters(recipe, folder, SECRET="HF_TOKEN")
    before, after = io.StringIO(), io.StringIO()
    killer = kill_at_checkpoint(folder / "kept" / "run")
    with redirect_stdout(before), pytest.raises(NotebookError, match=r"finetune run failed .SIGKILL"):
        run_all("kaggle.ipynb", chosen)
    killer.join()
    with redirect_stdout(after):
        run_all("kaggle.ipynb", chosen)
    return Session(folder, before.getvalue(), after.getvalue())


@pytest.mark.slow
def test_all_cells_run_again_after_a_kill_resume_the_run_and_finish_the_line(kaggle: Session) -> None:
    run, gguf = kaggle.folder / "kept" / "run", kaggle.folder / "kept" / "gguf"
    for folder in (run, gguf):
        check_files(folder, read_manifest(folder))
    assert read_manifest(run).facts["steps"] == 30
    assert "starting at the first step" in kaggle.before
    assert re.search("resuming after step [1-9]", kaggle.after)
    assert [path.name for path in gguf.glob("*.gguf")] == ["tiny-q8_0.gguf"]
    assert json.loads((gguf / "proof.json").read_text())["passed"] is True
    commands = re.findall(r"(?m)^\$ (\w+ \w+)", kaggle.after)
    assert commands == ["finetune estimate", "finetune run", "gladstone export", "runtime ask"]
    assert str(gguf / "tiny-q8_0.gguf") in kaggle.after.splitlines()[-1]


@pytest.mark.slow
def test_the_token_reaches_the_commands_but_no_output_and_no_file(
    kaggle: Session, calls: list[tuple[str, ...]]
) -> None:
    assert ("secret", "HF_TOKEN") in calls
    assert os.environ["HF_TOKEN"] == TOKEN
    assert TOKEN not in kaggle.before + kaggle.after
    files = [path for path in kaggle.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_what_is_finished_is_kept_when_all_cells_run_on_another_platform(
    kaggle: Session, calls: list[tuple[str, ...]], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kaggle.folder / "kept", tmp_path / "kept")
    run_all("colab.ipynb", parameters(recipe, tmp_path, USE_DRIVE=False, SECRET="HF_TOKEN"))
    printed = capsys.readouterr().out
    assert re.findall(r"(?m)^\$ (\w+ \w+)", printed) == ["runtime ask"]
    assert ("download", str(tmp_path / "kept" / "gguf" / "tiny-q8_0.gguf")) in calls
    assert not any(call[0] == "mount" for call in calls)
    assert "is lost when the session ends" in printed
    assert TOKEN not in printed


def names_after_set_up(notebook: str, chosen: dict[str, object]) -> dict[str, Any]:
    """The names in a notebook whose first cells have run."""
    names: dict[str, Any] = {}
    for cell in ("parameters", "set-up"):
        run_cell(cell, code(notebook)[cell], names)
        names.update(chosen)
    return names


def test_the_drive_is_mounted_before_anything_is_kept_there(
    recipe: Path, calls: list[tuple[str, ...]], tmp_path: Path
) -> None:
    names = names_after_set_up("colab.ipynb", {"RECIPE": str(recipe)})
    assert calls[-1] == ("mount", "/content/drive")
    assert Path(names["RUN"]) == Path("/content/drive/MyDrive/gladstone/run")


@pytest.mark.slow
def test_a_run_that_its_hours_stopped_leaves_the_later_cells_idle_and_resumes(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a saved version of Kaggle needs it, whose output is kept only if no cell fails."""
    source = code("kaggle.ipynb")
    names = names_after_set_up("kaggle.ipynb", parameters(recipe, tmp_path, HOURS=1e-9))
    for cell in ("train", "export", "ask", "download"):
        run_cell(cell, source[cell], names)
    printed = capsys.readouterr().out
    assert "Stopped by " in printed
    assert printed.count("The run is not finished") == 3
    assert not (tmp_path / "kept" / "run" / "manifest.json").exists()


@pytest.mark.parametrize("notebook", ["kaggle.ipynb", "colab.ipynb"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RECIPE": ""}, "RECIPE is empty"),
        ({"CHANGES": "training.epochs=1"}, r"CHANGES = 'training.epochs=1': expected a list such as"),
        ({"QUANTS": "q4_k_m"}, r"QUANTS = 'q4_k_m': expected a list of some of f16, q8_0"),
        ({"QUANTS": ["q4_k_m", "q4"]}, r"QUANTS = .* expected a list"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_starts(
    calls: list[tuple[str, ...]], notebook: str, wrong: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NotebookError, match=message):
        run_all(notebook, wrong | {"KEEP": str(tmp_path), "SCRATCH": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_the_notebook_stops_before_anything_is_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NotebookError, match=r"finetune estimate failed .exit code 1.; its message is above"):
        run_all("kaggle.ipynb", parameters(recipe, tmp_path, DEVICE="cuda"))
    assert "--device cpu" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "kept" / "run").exists()


def test_a_recipe_that_does_not_exist_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotebookError, match=r"finetune estimate failed .exit code 1.; its message is above"):
        run_all("kaggle.ipynb", parameters(Path("no-such-recipe"), tmp_path))
    assert "no-such-recipe" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("notebook", ["kaggle.ipynb", "colab.ipynb"])
def test_a_secret_that_the_platform_does_not_give_is_named(
    calls: list[tuple[str, ...]], notebook: str, recipe: Path, tmp_path: Path
) -> None:
    names = names_after_set_up(notebook, parameters(recipe, tmp_path, SECRET="OTHER"))
    with pytest.raises(NotebookError, match="SECRET = 'OTHER': the platform does not give this secret"):
        run_cell("token", code(notebook)["token"], names)


@pytest.mark.slow
@pytest.mark.long
def test_the_stop_button_saves_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """As Jupyter does it: one SIGINT to the process group of the kernel."""
    command = f"notebook.run('finetune', 'run', {str(recipe)!r}, '--out', {str(tmp_path)!r}, '--set', 'training.max_steps=5000')"
    kernel = subprocess.Popen(
        [PYTHON, "-c", f"from gladstone import notebook; {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: any(tmp_path.glob("checkpoints/step-*")), "the first checkpoint")
        os.killpg(kernel.pid, signal.SIGINT)
        printed, errors = kernel.communicate(timeout=PATIENCE_S)
    finally:
        kernel.kill()
    assert "everything is saved" in printed
    assert "finetune run was stopped by hand" in errors
    assert "KeyboardInterrupt" not in errors


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_one_run_from_a_cell(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(PYTHON))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = names_after_set_up("kaggle.ipynb", parameters(recipe, tmp_path, PROCESSES=2))
    run_cell("train", code("kaggle.ipynb")["train"], names)
    assert read_manifest(tmp_path / "kept" / "run").facts["steps"] == 30
    assert capsys.readouterr().out.count("Run folder: ") == 1


@pytest.mark.slow
@pytest.mark.long
def test_every_cell_of_the_notebook_of_colab_runs(
    recipe: Path, calls: list[tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all("colab.ipynb", parameters(recipe, tmp_path, USE_DRIVE=False))
    commands = re.findall(r"(?m)^\$ (\w+ \w+)", capsys.readouterr().out)
    assert commands == ["finetune estimate", "finetune run", "gladstone export", "runtime ask"]
    assert calls[-1] == ("download", str(tmp_path / "kept" / "gguf" / "tiny-q8_0.gguf"))
