"""Checkpoints: everything that a run needs to resume as if it had never stopped. Names torch, safetensors.

A checkpoint is a folder that appears whole or not at all: its files are written and fsynced under a temporary name, the
manifest last, and then the folder is renamed. It holds tensors and JSON only; nothing in it is executed. The metrics of
the run are a part of it, so that a damaged metrics file loses nothing.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone import run_folder
from gladstone.artifacts import (
    MANIFEST_NAME,
    Manifest,
    check_files,
    flush_to_disk,
    read_manifest,
    record_file,
    remove_partials,
    write_manifest,
)
from gladstone.errors import ArtifactError, listed
from gladstone.machine.host import readable_bytes
from gladstone.strict_json import json_text, numbers

TRAINED, OPTIMIZER, RANDOM, STATE = "trained.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
FILES = (TRAINED, OPTIMIZER, RANDOM, STATE, run_folder.METRICS)
STAGE = "checkpoint"
FOLDER = run_folder.CHECKPOINTS
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """The trained tensors by name, the states of optimizer, random generators and loop, and the metrics so far.

    `metrics` holds the lines of metrics.jsonl up to this step.
    """

    step: int
    trained: dict[str, Any]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    state: dict[str, Any]
    metrics: bytes


def save(folder: Path, checkpoint: Checkpoint, run: Mapping[str, Any]) -> Path:
    """Write a checkpoint under `folder`, with the identity of its `run`.

    Raises ArtifactError if it cannot be written; older checkpoints stay whole.
    """
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
        (partial / STATE).write_text(json_text({"loop": checkpoint.state, "optimizer": plain}), encoding="utf-8")
        (partial / run_folder.METRICS).write_bytes(checkpoint.metrics)
        files = [partial / name for name in FILES]
        for file in files:
            flush_to_disk(file)
        records = tuple(record_file(partial, file) for file in files)
        write_manifest(partial, Manifest(STAGE, records, {}, dict(run), {}, facts={"step": checkpoint.step}))
        _remove(final)
        partial.replace(final)
        flush_to_disk(folder)
    except (OSError, SafetensorError, ArtifactError) as error:
        needed = sum(value.nbytes for value in (*checkpoint.trained.values(), *tensors.values()))
        needed += len(checkpoint.metrics)
        free = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free
        raise ArtifactError(
            f"{folder}: the checkpoint of step {checkpoint.step} cannot be saved: {error}. It needs "
            f"{readable_bytes(needed)}, {readable_bytes(free)} are free; earlier checkpoints are whole. Free some "
            "space and resume with --resume."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def newest_whole(folder: Path, warn: Callable[[str], None]) -> tuple[Checkpoint, Manifest] | None:
    """Return the newest undamaged checkpoint and its manifest; damaged ones are reported to `warn` and skipped.

    Returns None without checkpoints. Raises ArtifactError if all of them are damaged.
    """
    problems = []
    for path in reversed(saved(folder)):
        try:
            return _load(path)
        except ArtifactError as error:
            problems.append(str(error))
            warn(f"{path.name} is damaged and is skipped: {error}")
    if problems:
        headline = f"{folder}: all checkpoints are damaged. Remove this folder to start again"
        raise ArtifactError(listed(headline, problems))
    return None


def set_aside(folder: Path, after_step: int) -> None:
    """Rename the damaged checkpoints after a step, so that they do not count as kept checkpoints."""
    for path in saved(folder):
        if step_of(path) > after_step:
            aside = path.with_name(f"{path.name}.damaged")
            _remove(aside)
            path.rename(aside)


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints' folders by step, the newest last."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and that of the best step. Raises ArtifactError if one stays."""
    for path in saved(folder)[:-keep]:
        if step_of(path) != best_step:
            _discard(path)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Remove the checkpoints of later steps and return the others. Raises ArtifactError if one stays."""
    kept = [path for path in saved(folder) if step_of(path) <= step]
    for path in saved(folder)[len(kept) :]:
        _discard(path)
    return kept


def _discard(path: Path) -> None:
    try:
        _remove(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be removed: {error.strerror}. It is no longer needed.") from None


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link; a folder disappears from its name before its files are removed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        gone = path.with_name(f".{path.name}.partial")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)


def load_trained(folder: Path, step: int) -> dict[str, Any]:
    """Load the trained tensors of one checkpoint. Raises ArtifactError if it is damaged."""
    return _load(folder / f"step-{step:08d}")[0].trained


def _load(path: Path) -> tuple[Checkpoint, Manifest]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = _checked_manifest(path)
    try:
        noted = numbers(json.loads((path / STATE).read_text(encoding="utf-8")))
        state = _checked_state(noted["loop"])
        optimizer = _unflatten(load_file(path / OPTIMIZER), noted["optimizer"])
        trained, random = load_file(path / TRAINED), load_file(path / RANDOM)
        metrics = (path / run_folder.METRICS).read_bytes()
        return Checkpoint(step_of(path), trained, optimizer, random, state, metrics), manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a checkpoint ({type(error).__name__}: {error}).") from None


def _checked_manifest(path: Path) -> Manifest:
    """Return the manifest, after checking that the files are those that it lists, and not links."""
    for member in (path, *(path / name for name in (*FILES, MANIFEST_NAME))):
        if member.is_symlink():
            raise ArtifactError(f"{member}: a link; a checkpoint must consist of its own files.")
    manifest = read_manifest(path)
    if manifest.stage != STAGE or manifest.facts.get("step") != step_of(path):
        raise ArtifactError(f"{path}: its manifest belongs to another folder.")
    for name in FILES:
        manifest.record(name)
    check_files(path, manifest)
    return manifest


def _checked_state(state: Any) -> dict[str, Any]:
    kinds = {"budget_tokens": int, "notes": dict, "scaler": dict, "seconds": dict}
    if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise TypeError(f"the loop's state needs {', '.join(kinds)}")
    if state["budget_tokens"] < 1 or not all(math.isfinite(seconds) for seconds in state["seconds"].values()):
        raise ValueError("the loop's state holds impossible numbers")
    return state


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide an optimizer's state into tensors by path ('state/0/exp_avg') and JSON for the rest."""
    import torch

    tensors: dict[str, Any] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = (
                value.detach().cpu().clone(memory_format=torch.contiguous_format)
            )  # safetensors rejects shared memory
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"items": [[key, plain(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [plain(item, f"{path}/{index}") for index, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ArtifactError(
            f"the optimizer's state {path} is a {type(value).__name__}, which a checkpoint cannot hold."
        )

    return tensors, plain(state, "optimizer")


def _unflatten(tensors: Mapping[str, Any], plain: Any) -> Any:
    if isinstance(plain, list):
        return [_unflatten(tensors, item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    return {key: _unflatten(tensors, item) for key, item in plain["items"]}
