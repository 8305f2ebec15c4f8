"""The layers of a recipe: its file, the user's rows in place of its own, and --set.

If settings of two layers contradict each other, the later layer wins and a note says so; within a layer it is an error.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gladstone.config import apply_overrides
from gladstone.errors import ConfigError
from gladstone.rows.compression import COMPRESSED

# fields of Gladstone's own recipes that fit the rows they name, not those of a user
FITTED_TO_ROWS = {"data": ("max_rows", "validation", "test"), "training": ("max_steps",)}
LONGEST_NAME = 64


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return `values` with each `section.field=value` set, and notes; `where` names the file of the values.

    Of training.epochs and training.max_steps only the one that was set last remains. Raises ConfigError if the
    overrides set both.
    """
    chosen = _lengths(apply_overrides({}, overrides))
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(f'{name}={value}' for name, value in chosen.items())} both set the length of the training. "
            "Set one."
        )
    changed = apply_overrides(dict(values), overrides)
    both = _lengths(changed)
    if len(both) < 2:
        return changed, []
    holds = next(iter(chosen), "training.max_steps")
    other = next(name for name in both if name != holds)
    changed["training"][other.partition(".")[2]] = None
    why = f"{holds}={both[holds]} was set" if chosen else f"it also sets {holds}={both[holds]}"
    return changed, [f"{other}={both[other]} of {where} is not used: {why}."]


def _lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of training.epochs and training.max_steps that are set, by their full names."""
    training = values.get("training")
    if not isinstance(training, dict):
        return {}
    named = {f"training.{name}": training.get(name) for name in ("epochs", "max_steps")}
    return {name: value for name, value in named.items() if value is not None}


def own_rows(values: Mapping[str, Any], overrides: Sequence[str], data: tuple[str, str] | None) -> list[Any] | None:
    """The user's sources, from --data or --set data.sources; None if the recipe's own are used.

    Raises ConfigError if both are given.
    """
    section = apply_overrides({}, overrides).get("data")
    own = section.get("sources") if isinstance(section, dict) else None
    if data is None:
        return own if isinstance(own, list) and own != _sources(values) else None
    if own is not None:
        raise ConfigError("--data and --set data.sources both name the rows. Give one.")
    return [{"path": data[0], "format": data[1]}]


def _sources(values: Mapping[str, Any]) -> Any:
    section = values.get("data")
    return section.get("sources") if isinstance(section, dict) else None


def with_sources(values: Mapping[str, Any], sources: list[Any]) -> dict[str, Any]:
    """Return the recipe with other sources."""
    section = values.get("data", {})
    return {**values, "data": {**section, "sources": sources} if isinstance(section, dict) else section}


def for_other_rows(
    values: Mapping[str, Any], overrides: Sequence[str], sources: list[Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe of Gladstone's for a user's rows, named after them and without the fields that fit its own rows.

    The notes list the dropped fields, except those that the overrides set.
    """
    made, given, left = dict(values), apply_overrides({}, overrides), []
    for section, names in FITTED_TO_ROWS.items():
        fields, chosen = made.get(section), given.get(section)
        if not isinstance(fields, dict):
            continue
        made[section] = {name: value for name, value in fields.items() if name not in names}
        left += [
            f"{section}.{name}={fields[name]}"
            for name in names
            if fields.get(name) is not None and not (isinstance(chosen, dict) and name in chosen)
        ]
    file = _file_name(sources)
    name = str(made.get("name"))
    made |= {"name": f"{name}-{_slug(file)}"[:LONGEST_NAME].rstrip("-._"), "description": f"{name} on {file}"}
    verb = "is" if len(left) == 1 else "are"
    return made, [f"{', '.join(left)} of recipe {name} {verb} meant for its own rows and not used."] if left else []


def _file_name(sources: list[Any]) -> str:
    first = sources[0] if sources and isinstance(sources[0], dict) else {}
    return PurePosixPath(str(first.get("path", "rows")).replace("\\", "/").rstrip("/")).name or "rows"


def _slug(file: str) -> str:
    """Return a file's name as part of a recipe's name.

    >>> _slug("Triage notes (2024).jsonl.gz")
    'Triage-notes-2024'
    """
    for ending in COMPRESSED:
        file = file.removesuffix(ending)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.partition(":")[2] or PurePosixPath(file).stem)
    return stem.strip("-._") or "rows"
