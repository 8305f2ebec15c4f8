"""notebooks/: one description makes both, their form, their set-up, and the parts that their cells call."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gladstone import notebook
from gladstone.notebook import NotebookError
from tests.notebook_cells import ROOT, SHELL_LINE, cells, code, run_cell

NAMES = ("kaggle.ipynb", "colab.ipynb")
both = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/notebooks.py as a module."""
    spec = importlib.util.spec_from_file_location("notebooks_script", ROOT / "scripts" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebooks_are_those_of_their_description(script: ModuleType) -> None:
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NAMES)
    for platform in (script.KAGGLE, script.COLAB):
        assert (ROOT / "notebooks" / platform.file).read_text(encoding="utf-8") == script.render(platform)


@both
def test_a_notebook_has_the_form_that_jupyter_asks_for(name: str) -> None:
    """Format 4.5: ids, and source, outputs and execution count of code; no output is stored."""
    data = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert data["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in data["cells"]]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each) for each in ids)
    for cell in data["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == keys | ({"outputs", "execution_count"} if cell["cell_type"] == "code" else set())
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@both
def test_one_cell_has_the_tag_that_papermill_looks_for(name: str) -> None:
    assert [cell["id"] for cell in cells(name) if "parameters" in cell["metadata"].get("tags", [])] == ["parameters"]


def test_the_platforms_are_asked_for_a_gpu() -> None:
    data = [json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))["metadata"] for name in NAMES]
    assert data[0]["kaggle"]["isGpuEnabled"] is True
    assert data[0]["kaggle"]["isInternetEnabled"] is True
    assert data[1]["accelerator"] == "GPU"


@both
def test_cells_are_python_that_removes_nothing_and_names_options_that_exist(name: str) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for cell, source in code(name).items():
        compile(SHELL_LINE.sub(r"\1pass", source), cell, "exec")
        assert not re.search(r"\brm\b|rmtree|unlink", source)
        assert all(option in page for option in re.findall(r'"(--[a-z-]+)"', source))


def set_up(name: str, monkeypatch: pytest.MonkeyPatch, **parameters: object) -> None:
    """Run the set-up where Gladstone is not installed."""
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(()))
    names: dict[str, Any] = {}
    run_cell("parameters", code(name)["parameters"], names)
    run_cell("set-up", code(name)["set-up"], names | {"USE_DRIVE": False} | parameters)


@both
def test_pip_accepts_the_line_of_the_set_up(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """pip itself reads the line, builds the metadata and says what it would install; dependencies need a network."""
    for option in ("DRY_RUN", "NO_INDEX", "NO_DEPS", "IGNORE_INSTALLED"):
        monkeypatch.setenv(f"PIP_{option}", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's own sense of it: no isolation
    set_up(name, monkeypatch, GLADSTONE=str(ROOT), KEEP=str(tmp_path))
    printed = capsys.readouterr().out
    assert "Would install gladstone-" in printed, printed
    assert "does not provide the extra" not in printed


@both
def test_the_set_up_says_what_it_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="GLADSTONE is empty: say where pip finds Gladstone"):
        set_up(name, monkeypatch)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The output of an earlier session: a run with one checkpoint, and permissions of an input of Kaggle."""
    checkpoint = tmp_path / "input" / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "state.json").write_text("as saved")
    (checkpoint / "state.json").chmod(0o444)
    checkpoint.chmod(0o555)
    return tmp_path / "input"


def test_an_earlier_run_is_copied_once_and_can_be_written_to(earlier: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    notebook.take_over(str(earlier), kept)
    copied = kept / "run" / "checkpoints" / "step-00000002"
    assert copied.stat().st_mode & 0o200
    (copied / "state.json").write_text("gone on")
    notebook.take_over(str(earlier), kept)
    assert (copied / "state.json").read_text() == "gone on"
    (earlier / "run" / "checkpoints" / "step-00000002").chmod(0o755)


def test_nothing_is_started_anew_in_place_of_an_earlier_run(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match=r"EARLIER = .*nowhere': holds no folder 'run'"):
        notebook.take_over(str(tmp_path / "nowhere"), tmp_path / "kept")
    (tmp_path / "kept" / "run").mkdir(parents=True)
    with pytest.raises(NotebookError, match="kept/run: holds no run and is in the way"):
        notebook.take_over(str(earlier), tmp_path / "kept")
    (earlier / "run" / "checkpoints" / "step-00000002").chmod(0o755)


def written_estimate(folder: Path, **sizes: int) -> Path:
    disk = dict.fromkeys(("adapter", "checkpoints", "merged, 16 bit", "GGUF f16", "GGUF q4_k_m"), 1_000_000)
    path = folder / "estimate.json"
    said = {"base": "owner/name", "disk_bytes": disk | {name.replace("_", " "): size for name, size in sizes.items()}}
    path.write_text(json.dumps(said))
    return path


def test_room_on_the_disks_is_compared_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    places = (tmp_path / "kept", tmp_path / "scratch")
    estimate = written_estimate(tmp_path)
    notebook.check_room(estimate, ["q4_k_m"], *places)
    needed = capsys.readouterr().out
    assert "303.0 MB  run and exported model" in needed
    assert "2.5 MB  export while it works" in needed
    assert f"1.0 MB  download of the base: {tmp_path}/hub/models--owner--name" in needed
    assert "306.5 MB still needed" in needed  # all three lie on one disk
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(NotebookError, match=rf"{places[0]} has .* free, .* GB are needed. Free some space"):
        notebook.check_room(written_estimate(tmp_path, adapter=2 * free), ["q4_k_m"], *places)


def test_what_an_earlier_call_left_counts_as_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept" / "run").mkdir(parents=True)
    (tmp_path / "kept" / "run" / "checkpoint").write_bytes(b"0" * 3_000_000)
    estimate = written_estimate(tmp_path)
    notebook.check_room(estimate, ["q4_k_m"], tmp_path / "kept", tmp_path / "scratch")
    assert "303.5 MB still needed" in capsys.readouterr().out


def test_a_token_is_stripped_and_an_empty_one_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    monkeypatch.setenv("HF_TOKEN", "")
    notebook.use_token("NAME", lambda name: " hf_secret\n")
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in capsys.readouterr().out
    with pytest.raises(NotebookError, match="the secret is empty"):
        notebook.use_token("NAME", lambda name: None)


def test_an_error_is_shown_as_its_message_alone() -> None:
    """IPython asks an exception how it wants to be shown."""
    assert NotebookError("why")._render_traceback_() == ["Stopped: why"]


def test_a_command_that_fails_ends_the_cell_after_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotebookError, match=r"runtime info failed .exit code 1.; its message is above"):
        notebook.run("runtime", "info", Path("no such.gguf"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "$ runtime info 'no such.gguf'"
    assert "no such.gguf" in printed[-1]


def test_the_script_finds_a_stale_notebook(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["notebooks.py", "--check"])
    assert script.main() == 1
    monkeypatch.setattr("sys.argv", ["notebooks.py"])
    assert script.main() == 0
    monkeypatch.setattr("sys.argv", ["notebooks.py", "--check"])
    assert script.main() == 0


def test_the_readme_leads_to_the_notebooks() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"(notebooks/{name})" in text
    tracked = subprocess.run(["git", "ls-files", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {Path(line).name for line in tracked.stdout.split()} >= set(NAMES)
