"""Reads a run from its folder: settings, history, and hashes of what it was trained and measured on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune.data.division import SETS
from finetune.monitor.metrics_log import History, read_history
from finetune.train import checkpoint as checkpoints
from gladstone import run_folder
from gladstone.artifacts import MANIFEST_NAME, Manifest, is_finished, read_manifest, sha256_path
from gladstone.errors import ArtifactError, ConfigError, GladstoneError, listed
from gladstone.strict_json import json_text

NO_SETTING = "not set"
NO_ROWS = "no rows"  # in place of a set's hash


@dataclass(frozen=True)
class Run:
    """One run. `identity` holds the known hashes of base, tokenizer, chat template and the three sets."""

    label: str
    folder: Path
    finished: bool
    settings: dict[str, Any]
    history: History
    facts: dict[str, Any]
    identity: dict[str, str] = field(default_factory=dict)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in order. Raises ArtifactError that names every folder that is not a run, or ConfigError."""
    if len(folders) < 2:
        raise ConfigError("a comparison needs at least two runs.")
    same = [str(path) for place, path in enumerate(folders) if _place(path) in map(_place, folders[:place])]
    if same:
        raise ConfigError(f"{', '.join(same)}: given twice. Name different runs.")
    runs, problems = [], []
    for folder, label in zip(folders, labels(folders), strict=True):
        try:
            runs.append(read_run(folder, label))
        except GladstoneError as error:
            problems.append(str(error))
    if problems:
        raise ArtifactError(listed("some folders are not runs", problems))
    return runs


def read_run(folder: Path, label: str) -> Run:
    """Read a finished run by its manifest, another by its recipe, checkpoints and metrics. Raises ArtifactError."""
    if is_finished(folder):
        return _finished(folder, label)
    metrics = folder / checkpoints.FOLDER / run_folder.METRICS
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder.")
    if not (folder / run_folder.RECIPE).is_file() or not metrics.is_file():
        raise ArtifactError(
            f"{folder}: not a run: it has neither {MANIFEST_NAME} (a finished run) nor recipe.yaml and "
            f"{metrics.relative_to(folder)} (an unfinished run)."
        )
    return _under_way(folder, label, read_history(metrics))


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest suffixes of the paths that are unique."""
    parts = [_place(folder).parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-count:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return [str(folder) for folder in folders]


def _place(folder: Path) -> Path:
    return folder.expanduser().resolve()


def _finished(folder: Path, label: str) -> Run:
    manifest = read_manifest(folder)
    if manifest.stage != "finetune":
        raise ArtifactError(f"{folder}: made by {manifest.stage!r}, not by finetune, so it is not a run.")
    return Run(
        label,
        folder,
        True,
        flat(manifest.config),
        read_history(folder / run_folder.METRICS),
        manifest.facts,
        _identity(manifest),
    )


def _identity(manifest: Manifest) -> dict[str, str]:
    hashes = {record.path: record.sha256 for record in manifest.files}
    rows = manifest.facts.get("rows") or {}
    found = {f"rows:{name}": hashes.get(f"data/{name}.jsonl", NO_ROWS if rows.get(name) == 0 else "") for name in SETS}
    tokenizer = {path: sha256 for path, sha256 in hashes.items() if _is_of_tokenizer(Path(path).name, path)}
    found |= {"base": manifest.parents.get("base", ""), "template": manifest.template_sha256 or ""}
    found["tokenizer"] = json_text(tokenizer, sort_keys=True) if tokenizer else ""
    return {name: value for name, value in found.items() if value}


def _under_way(folder: Path, label: str, history: History) -> Run:
    if not history.steps:
        raise ArtifactError(f"{folder}: has no completed step yet.")
    recipe = _read_recipe(folder / run_folder.RECIPE)
    sets = {name: run_folder.set_path(folder / run_folder.DATA, name) for name in SETS}
    facts: dict[str, Any] = {"rows": {name: _count(path) if path.is_file() else 0 for name, path in sets.items()}}
    identity = {f"rows:{name}": sha256_path(path) if path.is_file() else NO_ROWS for name, path in sets.items()}
    hashes = {
        f"tokenizer/{path.name}": sha256_path(path)
        for path in (folder / run_folder.TOKENIZER).glob("*")
        if _is_of_tokenizer(path.name, f"tokenizer/{path.name}")
    }
    identity["tokenizer"] = json_text(hashes, sort_keys=True) if hashes else ""
    saved = checkpoints.saved(folder / checkpoints.FOLDER)
    if saved:
        inputs, notes = _checkpoint(saved[-1])
        identity |= {"base": inputs.get("base", ""), "template": inputs.get("chat template", "")}
        facts |= {"held_out_loss_before": notes.get("held_out_loss_before")}
    return Run(label, folder, False, flat(recipe), history, facts, {k: v for k, v in identity.items() if v})


def _checkpoint(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The hashes of the run's inputs, and the notes of the loop."""
    try:
        state = json.loads((path / checkpoints.STATE).read_text(encoding="utf-8"))
        return read_manifest(path).config["inputs"], state["loop"]["notes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot read this checkpoint ({error}).") from None


def _is_of_tokenizer(name: str, path: str) -> bool:
    return path.startswith("tokenizer/") and not name.endswith(".jinja") and not name.startswith(".")


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(recipe, dict):
        raise ArtifactError(f"{path}: not a recipe.")
    return recipe


def _count(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}; a list counts as one value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }
