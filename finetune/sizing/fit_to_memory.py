"""Makes a training fit into memory by the changes that cost least. No torch.

Smaller micro-batches come first (the same gradient, somewhat slower), then recomputed activations (a third more time),
a 4-bit base (slightly different numbers), and shorter rows (lost data). The effective batch size never changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from finetune.config.schema import Recipe
from finetune.sizing.memory import (
    CUDA_BYTES,
    ComputeSetting,
    Memory,
    estimate_memory,
    needs_recomputing,
    weight_bytes,
)
from finetune.sizing.model_shape import Shape
from finetune.sizing.step_plan import Plan, Row, make_plan
from gladstone.config import apply_overrides, build_config
from gladstone.errors import UnsupportedError
from gladstone.machine.host import readable_bytes

SHARES_KEPT = (1.0, 0.98, 0.95, 0.9, 0.75, 0.5)  # of the rows, when rows are shortened
FITS = 0.95  # share of the memory that the peak may use

Changes = dict[str, object]


@dataclass(frozen=True)
class Scenario:
    """A training on a device: the model, the recipe, its rows, and the memory there is."""

    shape: Shape
    recipe: Recipe
    setting: ComputeSetting
    rows: dict[str, list[Row]]
    limit_bytes: float
    file_bytes: int = 0

    @property
    def room_bytes(self) -> float:
        """The most that the peak may be."""
        return self.limit_bytes * FITS


@dataclass(frozen=True)
class MemoryOption:
    """A changed recipe that takes less memory: the changed fields, the peak, and the training rows it loses."""

    recipe: Recipe
    changes: Changes
    memory: Memory
    rows: dict[str, list[Row]]
    lost_rows: int = 0

    @property
    def set_lines(self) -> list[str]:
        """The changes as options of a command."""
        return [f"--set {name}={str(value).lower()}" for name, value in self.changes.items()]


def assess(scenario: Scenario) -> tuple[Plan, Memory, bool]:
    """Return the plan of a scenario, its memory, and whether activations are recomputed."""
    plan = make_plan(scenario.recipe, scenario.rows, padded=scenario.setting.padded)
    return plan, *memory_of(scenario, plan)


def memory_of(scenario: Scenario, plan: Plan) -> tuple[Memory, bool]:
    """Return the memory of a plan, and whether activations are recomputed."""
    shape, recipe, setting = scenario.shape, scenario.recipe, scenario.setting
    weights = weight_bytes(shape, four_bit=recipe.base.load_in_4bit, dtype_bytes=setting.held_bytes)
    process = CUDA_BYTES if setting.on_gpu else setting.process_bytes
    free = int(scenario.limit_bytes - process - weights)
    recomputes = needs_recomputing(shape, recipe, setting, plan.largest, free)
    setting = replace(setting, recomputes=recomputes)
    return estimate_memory(shape, recipe, setting, plan.largest, plan.evaluated, scenario.file_bytes), recomputes


def single_options(scenario: Scenario) -> list[MemoryOption]:
    """Return each single change that lowers the peak, as far as it goes, the cheapest first."""
    lowest: dict[str, MemoryOption] = {}
    for changes, lost_rows in _candidates(scenario):
        field = _single_field(changes)
        if field is None:
            continue
        option = _apply(scenario, changes, lost_rows)
        if field not in lowest or option.memory.peak < lowest[field].memory.peak:
            lowest[field] = option
    peak = assess(scenario)[1].peak
    return [option for option in lowest.values() if option.memory.peak < peak]


def fit(scenario: Scenario) -> MemoryOption:
    """Return the cheapest recipe that fits; the recipe itself, without changes, if it does.

    Raises UnsupportedError, which names the smallest possible peak, if none fits.
    """
    smallest: MemoryOption | None = None
    for changes, lost_rows in _candidates(scenario):
        option = _apply(scenario, changes, lost_rows)
        if option.memory.peak <= scenario.room_bytes:
            return option
        if smallest is None or option.memory.peak < smallest.memory.peak:
            smallest = option
    if smallest is None:
        raise AssertionError("the unchanged recipe is a candidate")
    raise UnsupportedError(
        f"nothing makes {scenario.recipe.name} fit: its smallest possible peak is "
        f"{readable_bytes(smallest.memory.peak)} ({' '.join(smallest.set_lines) or 'without changes'}), and "
        f"{readable_bytes(scenario.limit_bytes)} are available. Choose a smaller base.model or another machine."
    )


def _candidates(scenario: Scenario) -> Iterator[tuple[Changes, int]]:
    """Yield changes and the training rows that they lose, the cheapest first."""
    recipe = scenario.recipe
    four_bit: list[Changes] = [{}]
    if not recipe.base.load_in_4bit and not scenario.shape.is_encoder_decoder:
        four_bit.append({"base.load_in_4bit": True})
    recomputing: list[Changes] = [{}]
    if recipe.training.gradient_checkpointing != "on":
        recomputing.append({"training.gradient_checkpointing": "on"})
    for shorter, bits, recomputed, batch in product(_shorter(scenario), four_bit, recomputing, _batches(scenario)):
        yield shorter[0] | bits | recomputed | batch, shorter[1]


def _batches(scenario: Scenario) -> list[Changes]:
    """Smaller micro-batches with the same effective batch size."""
    training = scenario.recipe.training
    if training.batch_tokens is not None:
        longest = max(row.tokens for row in scenario.rows["train"])
        sizes: list[Changes] = [{}]
        tokens = training.batch_tokens
        while tokens > longest:
            tokens = max(longest, tokens // 2)
            sizes.append({"training.batch_tokens": tokens})
        return sizes
    effective = training.rows_per_step
    smaller = [size for size in range(training.batch_size - 1, 0, -1) if effective % size == 0]
    return [{}] + [{"training.batch_size": size, "training.accumulation": effective // size} for size in smaller]


def _shorter(scenario: Scenario) -> list[tuple[Changes, int]]:
    """Lower limits on the length of rows, each with the number of training rows above it."""
    lengths = sorted(row.input_tokens for row in scenario.rows["train"])
    longer: dict[int, int] = {}
    for share in SHARES_KEPT[1:]:
        limit = max(16, lengths[min(len(lengths) - 1, int(share * len(lengths)))])
        above = sum(length > limit for length in lengths)
        if above:
            longer[limit] = above
    return [({}, 0)] + [({"base.max_tokens": limit}, above) for limit, above in longer.items()]


def _single_field(changes: Changes) -> str | None:
    """The changed field; None if there is none or several. The accumulation follows the batch size."""
    fields = {name for name in changes if name != "training.accumulation"}
    return fields.pop() if len(fields) == 1 else None


def _apply(scenario: Scenario, changes: Changes, lost_rows: int) -> MemoryOption:
    recipe, rows = scenario.recipe, scenario.rows
    if changes:
        lines = [f"{name}={str(value).lower()}" for name, value in changes.items()]
        recipe = build_config(Recipe, apply_overrides(recipe.model_dump(mode="json"), lines), f"recipe {recipe.name}")
    drops = recipe.base.long_rows == "drop"
    limit = changes.get("base.max_tokens")
    if isinstance(limit, int):
        rows = {name: _within(of_set, limit, drops=drops) for name, of_set in rows.items()}
    _, memory, _ = assess(replace(scenario, recipe=recipe, rows=rows))
    return MemoryOption(recipe, changes, memory, rows, lost_rows if drops else 0)


def _within(rows: list[Row], limit: int, *, drops: bool) -> list[Row]:
    if drops:
        return [row for row in rows if row.input_tokens <= limit]
    return [
        Row(
            min(row.input_tokens, limit),
            row.output_tokens,
            row.scored_tokens if row.output_tokens else min(row.scored_tokens, limit),
        )
        for row in rows
    ]
