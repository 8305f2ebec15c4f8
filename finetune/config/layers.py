"""A recipe's layers: its file, the user's rows in place of its own, and --set.

Where two settings contradict each other the later layer holds, and a note says so; within one layer it is an error.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gladstone.config import apply_overrides
from gladstone.errors import ConfigError

# of a recipe that comes with Gladstone: these fit the rows that it names, not those of a user
FITTED_TO_ROWS = {"data": ("max_rows", "validation", "test"), "training": ("max_steps",)}
LONGEST_NAME = 64
COMPRESSED = (".gz", ".zst")


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """`values` with each `section.field=value` set, and notes; `where` names the file of the values.

    At most one of training.epochs and training.max_steps is left: the one that was set last. Raises ConfigError where
    the overrides set both.
    """
    chosen = _lengths(apply_overrides({}, overrides))
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(f'{name}={value}' for name, value in chosen.items())} both say how long to train. Set one."
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
    """Which of epochs and max_steps are set, by their full names."""
    training = values.get("training")
    if not isinstance(training, dict):
        return {}
    named = {f"training.{name}": training.get(name) for name in ("epochs", "max_steps")}
    return {name: value for name, value in named.items() if value is not None}


def own_rows(values: Mapping[str, Any], overrides: Sequence[str], data: tuple[str, str] | None) -> list[Any] | None:
    """The sources that stand in for those of a recipe, by --data or --set data.sources; None where its own stay.

    Raises ConfigError where both are given.
    """
    section = apply_overrides({}, overrides).get("data")
    found = section.get("sources") if isinstance(section, dict) else None
    if data is None:
        return found if isinstance(found, list) and found != _sources(values) else None
    if found is not None:
        raise ConfigError("--data and --set data.sources both name the rows. Give one.")
    return [{"path": data[0], "format": data[1]}]


def _sources(values: Mapping[str, Any]) -> Any:
    section = values.get("data")
    return section.get("sources") if isinstance(section, dict) else None


def with_sources(values: Mapping[str, Any], sources: list[Any]) -> dict[str, Any]:
    """The recipe with other rows."""
    section = values.get("data", {})
    return {**values, "data": {**section, "sources": sources} if isinstance(section, dict) else section}


def for_other_rows(
    values: Mapping[str, Any], overrides: Sequence[str], sources: list[Any]
) -> tuple[dict[str, Any], list[str]]:
    """A recipe that comes with Gladstone for a user's rows: named after them, without what fits only its own.

    What the overrides set is no default, and needs no note.
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
    return made, [f"{', '.join(left)} of recipe {name} {verb} for its own rows, and not used."] if left else []


def _file_name(sources: list[Any]) -> str:
    first = sources[0] if sources and isinstance(sources[0], dict) else {}
    return PurePosixPath(str(first.get("path", "rows")).replace("\\", "/").rstrip("/")).name or "rows"


def _slug(file: str) -> str:
    """A file's name as part of a recipe's.

    >>> _slug("Triage notes (2024).jsonl.gz")
    'Triage-notes-2024'
    """
    for ending in COMPRESSED:
        file = file.removesuffix(ending)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.partition(":")[2] or PurePosixPath(file).stem)
    return stem.strip("-._") or "rows"
