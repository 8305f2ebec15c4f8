"""From a recipe's name or file, a user's rows and `--set` to a checked recipe."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from finetune.config import layers
from finetune.config.checks import find_conflicts
from finetune.config.schema import Recipe
from gladstone.config import build_config, read_yaml
from gladstone.errors import ConfigError, listed

DEFAULT_RECIPE = "smollm2-135m"  # for the rows of a user
DEMO_RECIPE = "demo-triage"
EMBEDDED_RECIPES = (DEMO_RECIPE, "smollm2-135m-medical")  # for the rows that come with Gladstone


def recipe_names() -> list[str]:
    """Names of the recipes that come with Gladstone."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The text of a recipe's file. Raises ConfigError for an unknown name."""
    return _find(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and notes for the user on how its layers were combined."""

    recipe: Recipe
    notes: tuple[str, ...]


def load_recipe(recipe: str | None, overrides: Sequence[str], data: tuple[str, str] | None = None) -> Recipe:
    """As `read_recipe`, without the notes."""
    return read_recipe(recipe, overrides, data).recipe


def read_recipe(recipe: str | None, overrides: Sequence[str], data: tuple[str, str] | None = None) -> LoadedRecipe:
    """Load a recipe by name or file and apply `--data PATH --format NAME` and `--set a.b=c`.

    Without a name it is the demo's recipe, or the default recipe if the user brings rows. Raises ConfigError, which
    lists every problem.
    """
    name, notes = recipe or DEMO_RECIPE, list[str]()
    values: dict[str, Any] = read_yaml(_find(name))
    sources = layers.own_rows(values, overrides, data)
    if sources is not None:
        if name in EMBEDDED_RECIPES:
            name, values = DEFAULT_RECIPE, read_yaml(_find(DEFAULT_RECIPE))
            notes += [f"recipe {recipe} is for the rows that come with it; yours use {name}."] if recipe else []
        if name in recipe_names():
            values, more_notes = layers.for_other_rows(values, overrides, sources)
            notes += more_notes
        values = layers.with_sources(values, sources)
    where = f"recipe {_find(name).name}"
    changed, more_notes = layers.with_overrides(values, overrides, where)
    if _base_name(changed) != _base_name(values):
        changed.pop("hub", None)  # the facts describe the base in the file
    made = build_config(Recipe, changed, where)
    problems = find_conflicts(made)
    if problems:
        raise ConfigError(listed(where, problems))
    return LoadedRecipe(made, (*notes, *more_notes))


def _base_name(values: dict[str, Any]) -> Any:
    base = values.get("base")
    return base.get("model") if isinstance(base, dict) else None


def _find(recipe: str) -> Path:
    if recipe in recipe_names():
        return _recipe_folder() / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(recipe, recipe_names(), n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no recipe {recipe!r}: neither a file nor one of {', '.join(recipe_names())}.{suggestion}")


def _recipe_folder() -> Path:
    return Path(str(resources.files("finetune"))) / "recipes"
