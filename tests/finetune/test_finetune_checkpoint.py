import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune.train import checkpoint as checkpoints
from finetune.train.checkpoint import FILES, RANDOM, STATE, TRAINED, Checkpoint
from gladstone.artifacts import Manifest, read_manifest, record_file, write_manifest
from gladstone.errors import ArtifactError

RUN = {"recipe": {"name": "tiny"}}


def made(step: int) -> Checkpoint:
    """A checkpoint whose tensors hold its step."""
    import torch

    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.full((2, 3), step / 7)}
    return Checkpoint(
        step,
        {"layer.lora_A": torch.full((2, 3), float(step))},
        {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]},
        {"cpu": torch.arange(8, dtype=torch.uint8)},
        {"budget_tokens": 64, "notes": {}, "scaler": {}, "seconds": {"step": 0.5}},
        b'{"kind": "validation", "step": 1, "loss_nats_per_token": 2.5}\n',
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of step 1 and 2."""
    for step in (1, 2):
        checkpoints.save(tmp_path / "checkpoints", made(step), RUN)
    return tmp_path / "checkpoints"


def test_a_checkpoint_comes_back_as_it_was_saved(folder: Path) -> None:
    import torch

    found = checkpoints.newest_whole(folder, pytest.fail)
    assert found is not None
    saved, manifest = found
    expected = made(2)
    assert (saved.step, saved.state, saved.metrics) == (2, expected.state, expected.metrics)
    assert torch.equal(saved.trained["layer.lora_A"], expected.trained["layer.lora_A"])
    assert torch.equal(saved.random["cpu"], expected.random["cpu"])
    assert saved.optimizer["state"].keys() == {0}
    assert torch.equal(saved.optimizer["state"][0]["exp_avg"], torch.full((2, 3), 2 / 7))
    assert saved.optimizer["param_groups"] == [{"lr": 1e-3, "betas": [0.9, 0.999], "params": [0]}]
    assert manifest.config == RUN


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert checkpoints.newest_whole(tmp_path / "none", pytest.fail) is None
    assert checkpoints.newest_whole(tmp_path, pytest.fail) is None


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES = [cut, flip, empty, Path.unlink, replace_by_folder, replace_by_link]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / "step-00000002" / name)
    told: list[str] = []
    found = checkpoints.newest_whole(folder, told.append)
    assert found is not None
    assert found[0].step == 1
    (warning,) = told
    assert warning.startswith("step-00000002 is damaged and is skipped: ")
    assert "step-00000002" in warning.partition("skipped")[2]


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Change a file of the newest checkpoint, with a manifest that agrees: what only a hand can do."""
    path = folder / "step-00000002"
    (path / name).write_bytes(content)
    manifest = read_manifest(path)
    records = tuple(record_file(path, path / each) for each in FILES)
    write_manifest(path, Manifest(manifest.stage, records, {}, manifest.config, {}, facts=manifest.facts))


NOT_STATES = {
    "empty": b"",
    "a list": b"[]",
    "no loop": b"{}",
    "nested too deeply": b"[" * 100_000 + b"]" * 100_000,
    "seconds that are no number": json.dumps(
        {
            "loop": {"budget_tokens": 64, "notes": {}, "scaler": {}, "seconds": {"step": float("nan")}},
            "optimizer": None,
        }
    ).encode(),
    "no budget": json.dumps(
        {"loop": {"budget_tokens": 0, "notes": {}, "scaler": {}, "seconds": {}}, "optimizer": None}
    ).encode(),
    "a budget of NaN": b'{"loop": {"budget_tokens": NaN, "notes": {}, "scaler": {}, "seconds": {}}, "optimizer": null}',
    "not UTF-8": b"\xff\xfe{}",
    "a tensor that is not there": b'{"loop": {"budget_tokens": 64, "notes": {}, "scaler": {}, "seconds": {}}, '
    b'"optimizer": {"tensor": "optimizer/none"}}',
}


@pytest.mark.parametrize("content", NOT_STATES.values(), ids=NOT_STATES)
def test_a_state_that_cannot_be_is_skipped_although_its_hash_is_right(folder: Path, content: bytes) -> None:
    rewritten(folder, STATE, content)
    told: list[str] = []
    found = checkpoints.newest_whole(folder, told.append)
    assert found is not None
    assert found[0].step == 1
    assert len(told) == 1


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"schema": NaN}', b'{"schema": 1, "files": [{}]}', b"null"])
def test_a_manifest_that_is_none_is_skipped(folder: Path, content: bytes) -> None:
    (folder / "step-00000002" / "manifest.json").write_bytes(content)
    told: list[str] = []
    found = checkpoints.newest_whole(folder, told.append)
    assert found is not None
    assert found[0].step == 1
    assert len(told) == 1


@pytest.mark.parametrize("change", [{"stage": "finetune"}, {"facts": {"step": 7}}, {"facts": {}}])
def test_a_manifest_of_another_folder_is_skipped(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "step-00000002" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    told: list[str] = []
    found = checkpoints.newest_whole(folder, told.append)
    assert found is not None
    assert found[0].step == 1
    assert told[0].endswith("its manifest belongs to another folder.")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["pickle", "torch archive"])
@pytest.mark.parametrize("name", [TRAINED, RANDOM, "optimizer.safetensors"])
def test_a_pickle_in_a_checkpoint_is_never_loaded(folder: Path, tmp_path: Path, way: str, name: str) -> None:
    import torch

    mark = tmp_path / "executed"
    hostile = tmp_path / "hostile"
    if way == "pickle":
        hostile.write_bytes(pickle.dumps({"layer.lora_A": Payload(mark)}))
    else:
        torch.save({"layer.lora_A": Payload(mark)}, hostile)
    with suppress(RuntimeError):  # a bare pickle is executed, and then is none of torch's
        torch.load(hostile, weights_only=False)
    assert mark.exists(), "the payload works where it is loaded"
    mark.unlink()
    rewritten(folder, name, hostile.read_bytes())
    for beside in ("optimizer.pt", "pytorch_model.bin", "adapter_model.bin", "rng_state.pth"):
        shutil.copy(hostile, folder / "step-00000001" / beside)
    told: list[str] = []
    found = checkpoints.newest_whole(folder, told.append)
    assert found is not None
    assert found[0].step == 1
    assert len(told) == 1
    assert not mark.exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_silently_start_again(folder: Path) -> None:
    for step in (1, 2):
        cut(folder / f"step-0000000{step}" / TRAINED)
    with pytest.raises(
        ArtifactError, match=r"all checkpoints are damaged\. Remove this folder to start again \(2 problems\)"
    ):
        checkpoints.newest_whole(folder, lambda _: None)


def test_damaged_checkpoints_that_were_skipped_do_not_push_out_whole_ones(folder: Path) -> None:
    checkpoints.save(folder, made(9), RUN)
    cut(folder / "step-00000009" / TRAINED)
    found = checkpoints.newest_whole(folder, lambda _: None)
    assert found is not None
    checkpoints.set_aside(folder, found[0].step)
    for step in (3, 4):
        checkpoints.save(folder, made(step), RUN)
        checkpoints.prune(folder, 2, best_step=None)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "step-00000003",
        "step-00000004",
        "step-00000009.damaged",
    ]


def test_the_newest_and_the_best_are_kept(folder: Path) -> None:
    for step in (3, 4, 5):
        checkpoints.save(folder, made(step), RUN)
        checkpoints.prune(folder, 2, best_step=1)
    assert [checkpoints.step_of(path) for path in checkpoints.saved(folder)] == [1, 4, 5]


@pytest.mark.parametrize("leftover", ["file", "link", "dangling link", "folder"])
def test_what_lies_under_a_checkpoints_name_is_replaced(folder: Path, tmp_path: Path, leftover: str) -> None:
    path = folder / "step-00000003"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("stays")
    if leftover == "file":
        path.write_text("")
    elif leftover == "folder":
        shutil.copytree(folder / "step-00000001", path)
    else:
        path.symlink_to(tmp_path / ("mine" if leftover == "link" else "nowhere"))
    checkpoints.save(folder, made(3), RUN)
    found = checkpoints.newest_whole(folder, pytest.fail)
    assert found is not None
    assert found[0].step == 3
    assert (tmp_path / "mine" / "notes.txt").read_text() == "stays"


def test_what_a_killed_process_left_is_no_checkpoint_and_goes_with_the_next_one(folder: Path) -> None:
    (folder / "step-00000002").rename(folder / ".step-00000002.77.partial")
    (folder / "step-00000001").rename(folder / ".step-00000001.partial")
    assert checkpoints.newest_whole(folder, pytest.fail) is None
    checkpoints.save(folder, made(3), RUN)
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
