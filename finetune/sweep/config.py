"""What SWEEP.yaml says. A field's help text is its `description`; it is written here and nowhere else."""

import json
import math
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from gladstone.config import Config, build_config
from gladstone.errors import ConfigError

Choices = tuple[str, ...]  # each value as JSON: a list of layers is a value too


class Range(Config):
    """The numbers between two ends, both included; whole ones if both ends and the step are whole."""

    low: int | float = Field(description="the lowest value")
    high: int | float = Field(description="the highest value")
    log: bool = Field(False, description="draw evenly on a logarithmic scale, as suits a learning rate")
    step: int | float | None = Field(None, description="draw low, low + step, low + 2 step …; null: any number")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true takes a low above 0, found {self.low}")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step ({self.step}) must be above 0 and fit between low and high")
        return self

    @property
    def whole(self) -> bool:
        """True if only whole numbers are drawn."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


class PruningSection(Config):
    """When a trial that does worse than the others is given up."""

    kind: Literal["none", "median", "halving"] = Field(
        "none",
        description="median: its validation loss is above the median of the others at the same validation; "
        "halving: it is not among the best 1 / reduction at validations that lie ever further apart",
    )
    after_trials: PositiveInt = Field(4, description="median: trials that are finished before any is given up")
    after_validations: PositiveInt = Field(1, description="validations of a trial that it always gets")
    reduction: int = Field(2, ge=2, description="halving: one of as many trials goes on at each mark")

    @model_validator(mode="after")
    def _of_its_kind(self) -> "PruningSection":
        given = self.model_fields_set
        for name, kind in (("after_trials", "median"), ("reduction", "halving")):
            if name in given and self.kind != kind:
                raise ValueError(f"{name} is of kind {kind!r}, not of {self.kind!r}")
        if "after_validations" in given and self.kind == "none":
            raise ValueError("after_validations is of kind 'median' or 'halving', not of 'none'")
        return self


class SweepSection(Config):
    """A whole SWEEP.yaml."""

    recipe: str = Field(description="the recipe that every trial starts from: a name from `finetune recipes` or a file")
    fields: dict[str, Any] = Field(
        min_length=1,
        description="what is tried, by the names that --set takes: a list of values, or a range "
        "{low: 1e-5, high: 1e-3, log: true} or {low: 8, high: 64, step: 8}",
    )
    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="every combination of the lists, random ones, or ones that a tree-structured Parzen estimator "
        "proposes from the trials so far",
    )
    trials: PositiveInt | None = Field(None, description="how many; for random and tpe (grid tries all)")
    seed: int = Field(0, ge=0, description="decides what random and tpe draw; a trial's own seed is training.seed")
    objective: Literal["validation loss"] = Field(
        "validation loss", description="what the best trial has the lowest of: its lowest validation loss"
    )
    pruning: PruningSection = Field(PruningSection(), description="none, median, halving, or a section with settings")
    overrides: dict[str, Any] = Field({}, description="fields of the recipe that are changed in all trials")

    @field_validator("pruning", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    def space(self) -> tuple[dict[str, Choices | Range], list[str]]:
        """The fields with their values, and what is wrong with them."""
        space: dict[str, Choices | Range] = {}
        problems = []
        for name, value in self.fields.items():
            try:
                space[name] = _values(name, value)
            except ConfigError as error:
                problems.append(str(error))
        if self.search == "grid":
            problems += [
                f"fields.{name}: a grid takes a list of values; a range is for search: random or tpe."
                for name, values in space.items()
                if isinstance(values, Range)
            ]
        return space, problems + self._count_problems(space)

    def _count_problems(self, space: dict[str, Choices | Range]) -> list[str]:
        if self.search == "grid":
            return [] if self.trials is None else ["trials: a grid tries every combination; leave it out."]
        if self.trials is None:
            return [f"trials: missing; how many trials shall search: {self.search} make?"]
        different = combinations(space)
        if different is not None and len(space) == len(self.fields) and self.trials > different:
            return [f"trials: {self.trials}, but the lists have only {different} combinations; use search: grid."]
        return []


def combinations(space: dict[str, Choices | Range]) -> int | None:
    """How many different trials there can be; None if a range makes them countless."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    return math.prod(map(len, lists)) if len(lists) == len(space) else None


def _values(name: str, value: Any) -> Choices | Range:
    if isinstance(value, dict):
        return build_config(Range, value, f"fields.{name}")
    if not isinstance(value, list):
        raise ConfigError(
            f"fields.{name}: expected a list of values or a range {{low: …, high: …}}, found {value!r}; a value for "
            "all trials belongs under overrides."
        )
    texts = tuple(json.dumps(each, default=str) for each in value)
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise ConfigError(f"fields.{name}: {', '.join(repeated)} is listed twice.")
    if not texts:
        raise ConfigError(f"fields.{name}: the list is empty.")
    return texts
