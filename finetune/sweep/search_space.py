"""A checked sweep: its recipe, the values to try, and notes for the user."""

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.config.field_help import field_help
from finetune.config.layers import with_overrides
from finetune.config.load import load_recipe, read_recipe
from finetune.config.schema import Recipe
from finetune.sweep.config import Choices, Range, SweepSection, combinations
from gladstone.config import build_config, read_yaml
from gladstone.errors import ConfigError, listed
from gladstone.strict_json import json_text

Settings = dict[str, Any]
NO_VALIDATION = "data.validation=0: a sweep compares its trials by validation loss. Set data.validation."
OWN_FIELDS = ("name", "description")
DURATION_FIELDS = ("training.epochs", "training.max_steps")
MAX_COMBINATIONS = 10_000
# trials that differ in these have validation losses on different rows or tokens
ROW_FIELDS = ("data.", "base.model", "base.chat_template", "base.template_date", "base.max_tokens",
              "base.max_target_tokens", "base.long_rows")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The sweep section and its recipe, with overrides applied and all defaults written out."""

    section: SweepSection
    recipe: dict[str, Any]
    recipe_notes: tuple[str, ...] = field(default=(), compare=False)  # notes on how the recipe was composed

    @cached_property
    def space(self) -> dict[str, Choices | Range]:
        """The fields with their values."""
        return self.section.space()[0]

    @property
    def total(self) -> int:
        """The number of trials."""
        return self.section.trials or combinations(self.space) or 0

    @property
    def notes(self) -> list[str]:
        """Notes on recipe fields that the sweep replaces, and on fields that make losses incomparable."""
        return [*self.recipe_notes, *self._replaced()] + [
            f"{name} changes the rows or tokens on which the loss is measured: losses of trials that differ in it are "
            "not comparable."
            for name in self.space
            if name.startswith(ROW_FIELDS)
        ]

    def _replaced(self) -> Iterator[str]:
        for tried, other in (DURATION_FIELDS, DURATION_FIELDS[::-1]):
            value = self.recipe["training"].get(other.partition(".")[2])
            if tried in self.space and value is not None:
                yield f"{other}={value} of the recipe is ignored, because the sweep varies {tried}."

    def grid(self) -> Iterator[dict[str, str]]:
        """Every combination of the lists, values as JSON; the last field changes fastest."""
        lists = [values for values in self.space.values() if not isinstance(values, Range)]
        return (dict(zip(self.space, values, strict=True)) for values in itertools.product(*lists))

    def settings(self, parameters: Mapping[str, Any]) -> Settings:
        """The settings of a trial's parameters, in the order of the file."""
        return {
            name: parameters[name] if isinstance(values, Range) else json.loads(parameters[name])
            for name, values in self.space.items()
        }

    def recipe_of(self, settings: Settings, trial: int | None = None) -> Recipe:
        """The recipe with a trial's settings; its name ends with the trial's number. Raises ConfigError."""
        name = self.recipe["name"]
        values = self.recipe | ({"name": f"{name[:56]}-{trial:03d}"} if trial is not None else {})
        changed, _ = with_overrides(values, assignments(settings), "the recipe")
        recipe = build_config(Recipe, changed, describe_settings(settings))
        if not recipe.data.has("validation"):
            raise ConfigError(f"{describe_settings(settings)}: {NO_VALIDATION}")
        return recipe


def describe_settings(settings: Settings) -> str:
    """The settings on one line."""
    return ", ".join(f"{name} {setting_text(value)}" for name, value in settings.items())


def setting_text(value: Any) -> str:
    """A value for people: numbers have four significant digits.

    >>> [setting_text(value) for value in (0.000134893, 2e-4, 0.05, 16, True, None, "cosine", ["q_proj", "v_proj"])]
    ['1.349e-4', '2e-4', '0.05', '16', 'true', 'null', 'cosine', 'q_proj v_proj']
    """
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        far = 0 < abs(value) < 1e-2 or abs(value) >= 1e6
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if far else f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    return value if isinstance(value, str) else json_text(value)


def assignments(settings: Settings) -> list[str]:
    """The settings as arguments of --set."""
    return [f"{name}={json_text(value, default=str)}" for name, value in settings.items()]


def read_plan(file: Path) -> Plan:
    """Read and check SWEEP.yaml. Raises ConfigError that lists every problem."""
    section = build_config(SweepSection, read_yaml(file), f"sweep {file.name}")
    space, problems = section.space()
    problems += _name_problems(section)
    try:
        recipe, notes = load_recipe(section.recipe, []), tuple[str, ...]()
    except ConfigError as error:
        raise ConfigError(listed(f"sweep {file.name}", [f"recipe: {error}", *problems])) from None
    known = {name: value for name, value in section.overrides.items() if _is_field(name)}
    try:
        loaded = read_recipe(section.recipe, assignments(known))
        recipe, notes = loaded.recipe, loaded.notes
    except ConfigError as error:
        problems.append(f"overrides: {error}")
    if not recipe.data.has("validation") and "data.validation" not in space:
        raise ConfigError(listed(f"sweep {file.name}", [*problems, NO_VALIDATION]))
    values = recipe.model_dump(mode="json")
    tried = {name: each for name, each in space.items() if _is_field(name)}
    problems += _value_problems(Plan(section, values), tried)
    if problems:
        raise ConfigError(listed(f"sweep {file.name}", problems))
    return Plan(section, values, notes)


def check_settings(plan: Plan, points: Iterable[dict[str, Any]]) -> None:
    """Raises ConfigError that lists every combination of settings that is invalid for the recipe."""
    problems = []
    for point in points:
        try:
            plan.recipe_of(plan.settings(point))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(listed(f"invalid settings for search: {plan.section.search}", problems))


def _name_problems(section: SweepSection) -> list[str]:
    problems = []
    for part, names in (("fields", section.fields), ("overrides", section.overrides)):
        for name in names:
            if name in OWN_FIELDS:
                problems.append(f"{part}.{name}: is set by the sweep to distinguish trials.")
            elif not _is_field(name):
                problems.append(f"{part}.{name}: unknown field{_suggestion(name)}.")
    both = [name for name in section.fields if name in section.overrides]
    problems += [f"{name}: is under both fields and overrides. Keep one." for name in both]
    lengths = [name for name in DURATION_FIELDS if name in section.fields or name in section.overrides]
    if len(lengths) > 1:
        problems.append(f"{' and '.join(lengths)} both set the length of the training. Keep one.")
    grid = combinations(section.space()[0]) or 0
    if section.search == "grid" and grid > MAX_COMBINATIONS:
        problems.append(
            f"fields: {grid:,} combinations, more than {MAX_COMBINATIONS:,}. Use search: random or tpe with trials."
        )
    return problems


def _field_names() -> list[str]:
    return [name for name, _ in field_help() if "[]" not in name and name not in OWN_FIELDS]


def _is_field(name: str) -> bool:
    """True for a field of the recipe, and for an entry of a field that is a mapping."""
    section, _, inner = name.rpartition(".")
    return name in _field_names() or (section in _field_names() and bool(inner) and _holds_settings(section))


def _holds_settings(name: str) -> bool:
    *sections, field = name.split(".")
    annotation: Any = Recipe
    for section in sections:
        annotation = annotation.model_fields[section].annotation
    return str(annotation.model_fields[field].annotation).startswith("dict[")


def _suggestion(name: str) -> str:
    known = _field_names()
    same_end = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]]
    near = difflib.get_close_matches(name, known, n=1) or same_end
    return f" (did you mean {(same_end or near)[0]!r}?)" if near else " (`finetune run --help` lists all)"


def _value_problems(plan: Plan, tried: dict[str, Choices | Range]) -> list[str]:
    """The problems of each value on its own, and of both ends of each range."""
    problems = []
    for name, values in tried.items():
        ends = [values.low, values.high] if isinstance(values, Range) else [json.loads(text) for text in values]
        for value in ends:
            try:
                plan.recipe_of({name: value})
            except ConfigError as error:
                problems.append(f"fields.{error}")
    return problems
