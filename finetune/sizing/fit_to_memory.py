"""What makes a training fit into memory, in the order of what it costs. No torch.

Smaller micro-batches come first (the same gradient, somewhat slower), then recomputed activations (a third more time),
the base in 4 bit (slightly other numbers), and shorter rows (data is lost). The effective batch stays what it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from finetune.config.schema import Recipe
from finetune.sizing.memory import ComputeSetting, Memory, estimate_memory, needs_recomputing, weight_bytes
from finetune.sizing.model_shape import Shape
from finetune.sizing.step_plan import Plan, Row, make_plan
from gladstone.config import apply_overrides, build_config
from gladstone.errors import UnsupportedError
from gladstone.machine.host import readable_bytes

SHARES_KEPT = (1.0, 0.98, 0.95, 0.9, 0.75, 0.5)  # of the rows, when rows are made shorter
FITS = 0.95  # of the memory that there is


@dataclass(frozen=True)
class Scenario:
    """A training on a machine: what it computes, where, and how much memory there is."""

    shape: Shape
    recipe: Recipe
    setting: ComputeSetting
    rows: dict[str, list[Row]]
    limit_bytes: float
    file_bytes: int = 0

    @property
    def room_bytes(self) -> float:
        """What the peak may be."""
        return self.limit_bytes * FITS


@dataclass(frozen=True)
class MemoryOption:
    """A recipe that was changed to take less memory: the fields, its peak, and the training rows that it loses."""

    recipe: Recipe
    changes: dict[str, object]
    memory: Memory
    rows: dict[str, list[Row]]
    lost_rows: int = 0

    @property
    def set_lines(self) -> list[str]:
        """The changes as options of a command."""
        return [f"--set {name}={str(value).lower()}" for name, value in self.changes.items()]


def assess(scenario: Scenario) -> tuple[Plan, Memory, bool]:
    """The plan of a scenario, its memory, and whether activations are recomputed."""
    plan = make_plan(scenario.recipe, scenario.rows, padded=scenario.setting.padded)
    return plan, *memory_of(scenario, plan)


def memory_of(scenario: Scenario, plan: Plan) -> tuple[Memory, bool]:
    """Memory at the peak of a plan, and whether activations are recomputed."""
    base, setting = scenario.recipe.base, scenario.setting
    weights = weight_bytes(scenario.shape, four_bit=base.load_in_4bit, dtype_bytes=setting.dtype_bytes)
    free = int(scenario.limit_bytes - setting.process_bytes - weights)
    recomputes = needs_recomputing(scenario.shape, scenario.recipe, setting, plan.largest, free)
    setting = replace(setting, recomputes=recomputes)
    return estimate_memory(
        scenario.shape, scenario.recipe, setting, plan.largest, plan.evaluated, scenario.file_bytes
    ), recomputes


def single_options(scenario: Scenario) -> list[MemoryOption]:
    """Each single measure that takes memory, as far as it goes, in the order of what it costs."""
    lowest: dict[str, MemoryOption] = {}
    for changes, lost in _candidates(scenario):
        kind = _kind(changes)
        if kind is None:
            continue
        option = _apply(scenario, changes, lost)
        if kind not in lowest or option.memory.peak < lowest[kind].memory.peak:
            lowest[kind] = option
    peak = assess(scenario)[1].peak
    return [option for option in lowest.values() if option.memory.peak < peak]


def fit(scenario: Scenario) -> MemoryOption:
    """The cheapest recipe that fits; the recipe itself, unchanged, if it does.

    Raises UnsupportedError that names the smallest peak if none does.
    """
    smallest: MemoryOption | None = None
    for changes, lost in _candidates(scenario):
        option = _apply(scenario, changes, lost)
        if option.memory.peak <= scenario.room_bytes:
            return option
        if smallest is None or option.memory.peak < smallest.memory.peak:
            smallest = option
    if smallest is None:
        raise AssertionError("the unchanged recipe is a candidate")
    raise UnsupportedError(
        f"nothing makes {scenario.recipe.name} fit: the smallest peak that it can reach is "
        f"{readable_bytes(smallest.memory.peak)} ({' '.join(smallest.set_lines) or 'as it is'}), and "
        f"{readable_bytes(scenario.limit_bytes)} are there. Choose a smaller base.model or another machine."
    )


def _candidates(scenario: Scenario) -> Iterator[tuple[dict[str, object], int]]:
    """Changes and the training rows that they lose, the cheapest first."""
    recipe = scenario.recipe
    four_bit: list[dict[str, object]] = [{}]
    if not recipe.base.load_in_4bit and not scenario.shape.seq2seq:
        four_bit.append({"base.load_in_4bit": True})
    recomputing: list[dict[str, object]] = [{}]
    if recipe.training.gradient_checkpointing != "on":
        recomputing.append({"training.gradient_checkpointing": "on"})
    for shorter, bits, again, batch in product(_shorter(scenario), four_bit, recomputing, _batches(scenario)):
        yield shorter[0] | bits | again | batch, shorter[1]


def _batches(scenario: Scenario) -> list[dict[str, object]]:
    """Smaller micro-batches of the same effective batch."""
    training = scenario.recipe.training
    if training.batch_tokens is not None:
        longest = max(row.tokens for row in scenario.rows["train"])
        sizes: list[dict[str, object]] = [{}]
        tokens = training.batch_tokens
        while tokens > longest:
            tokens = max(longest, tokens // 2)
            sizes.append({"training.batch_tokens": tokens})
        return sizes
    effective = training.rows_per_step
    smaller = [size for size in range(training.batch_size - 1, 0, -1) if effective % size == 0]
    return [{}] + [{"training.batch_size": size, "training.accumulation": effective // size} for size in smaller]


def _shorter(scenario: Scenario) -> list[tuple[dict[str, object], int]]:
    """Shorter longest rows, and how many training rows are longer."""
    lengths = sorted(row.input_tokens for row in scenario.rows["train"])
    found: dict[int, int] = {}
    for share in SHARES_KEPT[1:]:
        most = max(16, lengths[min(len(lengths) - 1, int(share * len(lengths)))])
        longer = sum(length > most for length in lengths)
        if longer:
            found[most] = longer
    return [({}, 0)] + [({"base.max_tokens": most}, longer) for most, longer in found.items()]


def _kind(changes: dict[str, object]) -> str | None:
    """Which single measure this is; None for none or several."""
    fields = {name for name in changes if name != "training.accumulation"}
    return fields.pop() if len(fields) == 1 else None


def _apply(scenario: Scenario, changes: dict[str, object], lost: int) -> MemoryOption:
    recipe, rows = scenario.recipe, scenario.rows
    if changes:
        lines = [f"{name}={str(value).lower()}" for name, value in changes.items()]
        recipe = build_config(Recipe, apply_overrides(recipe.model_dump(mode="json"), lines), f"recipe {recipe.name}")
    most = changes.get("base.max_tokens")
    if isinstance(most, int):
        rows = {name: _within(each, most, drops=recipe.base.long_rows == "drop") for name, each in rows.items()}
    _, memory, _ = assess(replace(scenario, recipe=recipe, rows=rows))
    return MemoryOption(recipe, changes, memory, rows, lost if recipe.base.long_rows == "drop" else 0)


def _within(rows: list[Row], most: int, *, drops: bool) -> list[Row]:
    if drops:
        return [row for row in rows if row.input_tokens <= most]
    return [
        Row(
            min(row.input_tokens, most),
            row.output_tokens,
            min(row.scored_tokens, most) if not row.output_tokens else row.scored_tokens,
        )
        for row in rows
    ]
