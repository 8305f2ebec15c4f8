"""Checkpoints: everything that a run needs to go on as if it had never stopped. Names torch, safetensors.

A checkpoint is a folder that appears whole: its files are written and fsynced under a temporary name, its manifest is
the last of them, and then the folder is renamed. It holds tensors and JSON only; nothing in it is ever executed.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.artifacts import Manifest, check_files, read_manifest, record_file, remove_partials, write_manifest
from gladstone.errors import ArtifactError
from gladstone.host import readable_bytes

TRAINED, OPTIMIZER, RANDOM, STATE = "trained.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
FILES = (TRAINED, OPTIMIZER, RANDOM, STATE)
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: trained tensors by name, the optimizer's and the random generators' state, the loop's own."""

    step: int
    trained: dict[str, Any]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, run: Mapping[str, Any]) -> Path:
    """Write a checkpoint under `folder`; `run` says what it belongs to. Raises ArtifactError; older ones stay whole."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    tensors, plain = _flatten(checkpoint.optimizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        partial.mkdir()
        save_file({name: value.contiguous() for name, value in checkpoint.trained.items()}, partial / TRAINED)
        save_file(tensors, partial / OPTIMIZER)
        save_file(checkpoint.random, partial / RANDOM)
        (partial / STATE).write_text(json.dumps({"loop": checkpoint.state, "optimizer": plain}), encoding="utf-8")
        files = [partial / name for name in FILES]
        for file in files:
            _sync(file)
        records = tuple(record_file(partial, file) for file in files)
        write_manifest(partial, Manifest("checkpoint", records, {}, dict(run), {}, facts={"step": checkpoint.step}))
        if final.exists():  # of the same step, saved before the loop was told to stop there
            shutil.rmtree(final)
        partial.replace(final)
        _sync(folder)
    except (OSError, SafetensorError, ArtifactError) as error:
        needed = sum(value.nbytes for value in (*checkpoint.trained.values(), *tensors.values()))
        free = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free
        raise ArtifactError(
            f"{folder}: the checkpoint of step {checkpoint.step} cannot be saved: {error}. It needs "
            f"{readable_bytes(needed)}, {readable_bytes(free)} are free; earlier checkpoints are whole. Make room and "
            "go on with --resume."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def newest_whole(folder: Path, warn: Callable[[str], None]) -> tuple[Checkpoint, Manifest] | None:
    """The newest checkpoint whose every byte is as it was written; a damaged one is told to `warn` and skipped."""
    for path in reversed(saved(folder)):
        try:
            return _load(path)
        except ArtifactError as error:
            warn(f"{path.name} is damaged and is skipped: {error}")
    return None


def saved(folder: Path) -> list[Path]:
    """Checkpoints by step, the newest last."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def step_of(path: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` and the one of the best validation loss."""
    for path in saved(folder)[:-keep]:
        if step_of(path) != best_step:
            gone = path.with_name(f".{path.name}.partial")  # whole under its name, or not there
            path.rename(gone)
            shutil.rmtree(gone)


def load_trained(folder: Path, step: int) -> dict[str, Any]:
    """The trained tensors of one checkpoint. Raises ArtifactError if it is damaged."""
    return _load(folder / f"step-{step:08d}")[0].trained


def _load(path: Path) -> tuple[Checkpoint, Manifest]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(path)
    check_files(path, manifest)
    for name in FILES:
        manifest.record(name)
    try:
        noted = json.loads((path / STATE).read_text(encoding="utf-8"))
        optimizer = _unflatten(load_file(path / OPTIMIZER), noted["optimizer"])
        trained, random = load_file(path / TRAINED), load_file(path / RANDOM)
        return Checkpoint(manifest.facts["step"], trained, optimizer, random, noted["loop"]), manifest
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a checkpoint ({error}).") from None


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An optimizer's state as tensors by path ('state/0/exp_avg') and the rest as JSON of the same shape."""
    import torch

    tensors: dict[str, Any] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().contiguous()
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"items": [[key, plain(each, f"{path}/{key}")] for key, each in value.items()]}
        if isinstance(value, list | tuple):
            return [plain(each, f"{path}/{place}") for place, each in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ArtifactError(f"the optimizer keeps {path} as {type(value).__name__}, which a checkpoint cannot hold.")

    return tensors, plain(state, "optimizer")


def _unflatten(tensors: Mapping[str, Any], plain: Any) -> Any:
    if isinstance(plain, list):
        return [_unflatten(tensors, each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    return {key: _unflatten(tensors, each) for key, each in plain["items"]}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
