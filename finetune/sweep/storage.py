"""The files of a sweep folder, and the locks on it."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.sweep.config import SweepSection
from finetune.sweep.search_space import Plan
from gladstone.artifacts import check_writable, write_json
from gladstone.config import build_config
from gladstone.errors import ArtifactError, listed
from gladstone.process.lock import lock_folder, wait_for_lock
from gladstone.strict_json import json_text, numbers

SWEEP_NAME, LOCK_NAME, BEST_NAME = "sweep.json", ".sweep.lock", "best.yaml"
SCHEMA = 1


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of the trial with this number, from 1."""
    return folder / "trials" / f"trial-{number:03d}"


def sweep_lock(folder: Path) -> AbstractContextManager[None]:
    """Held by the one command that makes this sweep. Raises ArtifactError if another one does."""
    return lock_folder(folder / LOCK_NAME, "making a sweep")


def trial_lock(folder: Path, number: int) -> AbstractContextManager[None]:
    """Held by the one process that makes this trial; waits for one that a killed sweep left behind, which ends soon."""
    return wait_for_lock(trial_folder(folder, number).with_name(f".trial-{number:03d}.lock"))


def start_or_continue(folder: Path, plan: Plan) -> None:
    """Record the sweep in its folder. Raises ArtifactError with the differences if the folder holds another sweep."""
    known = identity(plan)
    if not (folder / SWEEP_NAME).is_file():
        if folder.is_dir() and any(path.name != LOCK_NAME for path in folder.iterdir()):
            raise ArtifactError(f"{folder}: holds other files, not a sweep. Choose another folder with --out.")
        check_writable(folder)
        write_json(folder / SWEEP_NAME, known)
        return
    before = _read(folder)
    # fields that the stored recipe lacks, as of an earlier version, have their defaults
    recipe = build_config(Recipe, numbers(before["recipe"]), str(folder / SWEEP_NAME))
    before["recipe"] = recipe.model_dump(mode="json")
    changes = [
        change
        for part in ("sweep", "recipe")
        for change in _differences(numbers(before.get(part)), numbers(known[part]), part)
    ]
    if changes:
        raise ArtifactError(
            listed(f"{folder}: holds a sweep that was started with other settings", changes)
            + "\nRestore them, choose another folder with --out, or remove this one."
        )


def identity(plan: Plan) -> dict[str, Any]:
    """The part of a sweep that must be equal to continue it."""
    return {"schema": SCHEMA, "sweep": plan.section.model_dump(mode="json", exclude_unset=True), "recipe": plan.recipe}


def stored_plan(folder: Path) -> Plan:
    """The plan of a started sweep. Raises ArtifactError."""
    data = _read(folder)
    return Plan(build_config(SweepSection, data["sweep"], str(folder / SWEEP_NAME)), data["recipe"])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP_NAME
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ArtifactError(f"{path}: written by another version of Gladstone (schema {SCHEMA} expected).")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a valid sweep file ({error}).") from None
    return data


def _differences(before: Any, after: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for key in sorted(before.keys() | after.keys())
            for change in _differences(before.get(key), after.get(key), f"{name}.{key}")
        ]
    if before == after:
        return []
    return [f"{name}: was {json_text(before)}, is {json_text(after)}"]
