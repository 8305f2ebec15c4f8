"""The schema of SWEEP.yaml. The `description` of a field is its help text."""

import math
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from gladstone.config import Config, build_config
from gladstone.errors import ConfigError
from gladstone.strict_json import json_text

Choices = tuple[str, ...]  # each value as JSON: a list of layers is a value too


class Range(Config):
    """The numbers from low to high, both included; integers if low, high and step are integers."""

    low: int | float = Field(description="the lowest value")
    high: int | float = Field(description="the highest value")
    log: bool = Field(False, description="sample uniformly on a logarithmic scale, as for a learning rate")
    step: int | float | None = Field(None, description="sample low, low + step, low + 2 step, …; null: any number")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true requires low > 0, found {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step ({self.step}) must be above 0 and fit between low and high")
        return self

    @property
    def whole(self) -> bool:
        """True if only integers are sampled."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


class PruningSection(Config):
    """When a trial that does worse than the others is pruned (stopped early)."""

    kind: Literal["none", "median", "halving"] = Field(
        "none",
        description="median: prune if the validation loss is above the median of the other trials at that validation; "
        "halving: prune unless among the best 1 / reduction, checked at ever longer intervals",
    )
    after_trials: PositiveInt = Field(4, description="median: number of finished trials before any is pruned")
    after_validations: PositiveInt = Field(1, description="number of validations before a trial can be pruned")
    reduction: int = Field(2, ge=2, description="halving: one in this many trials continues at each check")

    @model_validator(mode="after")
    def _of_its_kind(self) -> "PruningSection":
        given = self.model_fields_set
        for name, kind in (("after_trials", "median"), ("reduction", "halving")):
            if name in given and self.kind != kind:
                raise ValueError(f"{name} needs kind: {kind}, found kind: {self.kind}")
        if "after_validations" in given and self.kind == "none":
            raise ValueError("after_validations needs kind: median or halving, found kind: none")
        return self


class SweepSection(Config):
    """A whole SWEEP.yaml."""

    recipe: str = Field(description="base recipe of all trials: a name from `finetune recipes`, or a file")
    fields: dict[str, Any] = Field(
        min_length=1,
        description="fields to vary, named as for --set, each with a list of values or a range "
        "{low: 1e-5, high: 1e-3, log: true} or {low: 8, high: 64, step: 8}",
    )
    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="grid: every combination of the lists; random: random combinations; tpe: combinations that a "
        "tree-structured Parzen estimator proposes from earlier trials",
    )
    trials: PositiveInt | None = Field(
        None, description="number of trials, for random and tpe; a grid runs every combination"
    )
    seed: int = Field(0, ge=0, description="seed of random and tpe; the seed of a training is training.seed")
    objective: Literal["validation loss"] = Field(
        "validation loss", description="value to minimise: the lowest validation loss of a trial"
    )
    pruning: PruningSection = Field(
        PruningSection(), description="none, median, halving, or a section with its settings"
    )
    overrides: dict[str, Any] = Field({}, description="fields of the recipe to change in all trials")

    @field_validator("pruning", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    def space(self) -> tuple[dict[str, Choices | Range], list[str]]:
        """The fields with their values, and the problems found in them."""
        space: dict[str, Choices | Range] = {}
        problems = []
        for name, value in self.fields.items():
            try:
                space[name] = _values(name, value)
            except ConfigError as error:
                problems.append(str(error))
        if self.search == "grid":
            problems += [
                f"fields.{name}: a grid needs a list of values; ranges are for search: random or tpe."
                for name, values in space.items()
                if isinstance(values, Range)
            ]
        return space, problems + self._count_problems(space)

    def _count_problems(self, space: dict[str, Choices | Range]) -> list[str]:
        if self.search == "grid":
            return [] if self.trials is None else ["trials: a grid runs every combination. Remove this field."]
        if self.trials is None:
            return [f"trials: missing, required for search: {self.search}."]
        different = combinations(space)
        if different is not None and len(space) == len(self.fields) and self.trials > different:
            return [f"trials: {self.trials}, but the lists have only {different} combinations. Use search: grid."]
        return []


def combinations(space: dict[str, Choices | Range]) -> int | None:
    """The number of different trials; None if a range makes it unbounded."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    return math.prod(map(len, lists)) if len(lists) == len(space) else None


def _values(name: str, value: Any) -> Choices | Range:
    if isinstance(value, dict):
        return build_config(Range, value, f"fields.{name}")
    if not isinstance(value, list):
        raise ConfigError(
            f"fields.{name}: expected a list of values or a range {{low: …, high: …}}, found {value!r}. Put a "
            "value for all trials under overrides."
        )
    texts = tuple(json_text(each, default=str, ensure_ascii=True) for each in value)
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise ConfigError(f"fields.{name}: {', '.join(repeated)} is listed twice.")
    if not texts:
        raise ConfigError(f"fields.{name}: the list is empty.")
    return texts
