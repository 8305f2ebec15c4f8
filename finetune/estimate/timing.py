"""The time of a training: measured on a few layers of the base, or computed from operations and a rate. Names torch.

The measurement loads the base as a run does, but with a few of its layers, and extrapolates linearly to all layers.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema import LoraSection, Recipe
from finetune.kernels.compile_layers import COMPILING_S, TIME_SHARE, should_compile
from finetune.model.load import load_trainable
from finetune.sizing.devices import EFFICIENCY, Device
from finetune.sizing.memory import ComputeSetting, MicroBatchShape, adapter_parameters, fuses_loss
from finetune.sizing.model_shape import Shape
from finetune.sizing.step_plan import Plan, micro_batch_shape, rows_of
from finetune.tokens.examples import Example, token_count
from gladstone import file_names
from gladstone.models.base_model import Base
from gladstone.strict_json import json_text, tagged

BUDGET_S = 10.0
MEASURED_WEIGHTS = 150e6  # in the measured layers, so that a large model loads quickly
SMALL_WEIGHTS = 60e6  # with as many, the larger micro-batch takes about a second
LARGE_TOKENS, SMALL_TOKENS = 1024, 256  # of the two timed micro-batches, from which the time of others is interpolated
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
LAYER_LISTS = (".layers", ".h", ".block")
DEQUANTISED_BYTES = 4.5  # read and written per 4-bit weight, each time a matrix product uses it


@dataclass(frozen=True)
class Line:
    """Seconds of a batch as a line: `fixed_s` for the batch, `token_s` for each computed token."""

    fixed_s: float
    token_s: float

    def of(self, batches: Sequence[MicroBatchShape]) -> float:
        """Return the seconds of all batches."""
        return sum(self.fixed_s + self.token_s * batch.total for batch in batches)


@dataclass(frozen=True)
class Rates:
    """Seconds of training micro-batches, of evaluation batches, and of an optimizer update."""

    training: Line
    evaluation: Line
    optimizer_s: float


@dataclass(frozen=True)
class Measured:
    """The rates of this machine, and how it computes the base."""

    rates: Rates
    dtype: str
    device_kind: str
    padded: bool


@dataclass(frozen=True)
class Times:
    """Seconds of a run's steps, of its evaluations, of an epoch and of a step."""

    training_s: float
    evaluation_s: float
    epoch_s: float
    step_s: float

    @property
    def total_s(self) -> float:
        """Seconds of steps and evaluations, without loading and data preparation."""
        return self.training_s + self.evaluation_s


def times(plan: Plan, rates: Rates, *, compiled: bool = False) -> Times:
    """Return the time of a plan; what compiled layers save and cost is known from other runs."""
    share, once_s = (TIME_SHARE, COMPILING_S) if compiled else (1.0, 0.0)
    planned = share * rates.training.of(plan.training) + rates.optimizer_s * plan.planned_steps
    step_s = planned / plan.planned_steps
    of_validation, of_test = rates.evaluation.of(plan.validation), rates.evaluation.of(plan.test)
    # without test rows the validation loss is also measured before training
    evaluation_s = plan.evaluations * of_validation + (2 * of_test if plan.test else of_validation)
    return Times(step_s * plan.steps + once_s, evaluation_s, step_s * plan.steps_per_epoch, step_s)


def compiles(shape: Shape, recipe: Recipe, plan: Plan, setting: ComputeSetting) -> bool:
    """True if a run on the CPU will compile its layers."""
    if setting.padded or setting.on_gpu or setting.recomputes:
        return False
    return should_compile(recipe.training.compile, shape.parameters, plan.tokens_trained)


def computed_rates(  # noqa: PLR0913, PLR0917 - what is trained, how, where
    shape: Shape, recipe: Recipe, plan: Plan, device: Device, setting: ComputeSetting, efficiency: float = EFFICIENCY
) -> Rates:
    """Compute the rates from the operations of a step and a share of the device's published peak."""
    rate = (device.float32_flop_per_s if setting.held_bytes == 4 else device.flop_per_s) * efficiency
    scored = sum(batch.scored_tokens for batch in plan.training) / max(1, sum(batch.total for batch in plan.training))
    whole = setting.padded and not fuses_loss(shape, setting)  # the head computes unscored tokens, too
    head = 2 * shape.vocabulary * shape.width * (1 if whole else scored)
    forward = 2 * shape.linear_weights
    adapter = 2 * adapter_parameters(shape, recipe.lora)
    passes = 3 if setting.recomputes else 2
    flop = passes * forward + 3 * adapter + 2 * head
    dequantised = shape.linear_weights * DEQUANTISED_BYTES * passes if recipe.base.load_in_4bit else 0
    read = shape.parameters * setting.held_bytes
    fixed = (dequantised or read * passes) / device.bytes_per_s
    states = (
        adapter_parameters(shape, recipe.lora) * 28 / device.bytes_per_s
    )  # weight, gradient, moments: read, written
    return Rates(
        Line(fixed, flop / rate), Line(fixed / passes, (forward + adapter + head) / rate), states
    )  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What is timed: a base of this shape on these rows, for about `budget_s` seconds."""

    base: Base
    shape: Shape
    examples: Sequence[Example]
    pad_id: int
    budget_s: float = BUDGET_S


def measure(sample: Sample, recipe: Recipe) -> Measured:
    """Time some layers of the base and extrapolate to all. Raises what `load_trainable` raises."""
    shape, base, examples, budget_s = sample.shape, sample.base, sample.examples, sample.budget_s
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"compile": "off"})})
    per_layer = max(1.0, shape.linear_weights / shape.layers)
    layers = min(shape.layers, max(2, int(MEASURED_WEIGHTS / per_layer)))
    with tempfile.TemporaryDirectory(prefix="gladstone-estimate-") as folder:
        trainable = load_trainable(_with_layers(base, Path(folder), layers), recipe, sample.pad_id, examples)
    if shape.layers == layers:
        rates = _time(trainable, recipe, examples, budget_s)
    else:
        many = _time(trainable, recipe, examples, budget_s * 0.55)
        _keep_layers(trainable.model, layers, 1)
        one = _time(trainable, recipe, examples, budget_s * 0.45)
        rates = _extrapolated(one, many, (shape.layers - 1) / (layers - 1))
    return Measured(rates, trainable.dtype, trainable.device_kind, trainable.forward.padded)


def _with_layers(base: Base, folder: Path, layers: int) -> Base:
    """Return the base as a folder whose config has fewer layers; its weights are links to the same files."""
    for path in base.folder.iterdir():
        if path.is_file() and path.name != file_names.CONFIG:
            (folder / path.name).symlink_to(path.resolve())
    config = copy.deepcopy(base.config)
    for part in (config, config.get("text_config") or {}):
        part.update({name: layers for name in LAYER_FIELDS if part.get(name)})
        if part.get("layer_types"):
            part["layer_types"] = part["layer_types"][:layers]
    (folder / file_names.CONFIG).write_text(json_text(config, non_finite=tagged), encoding="utf-8")
    return Base(base.name, folder, base.fingerprint, config)


def _keep_layers(model: Any, layers: int, kept: int) -> None:
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers and name.endswith(LAYER_LISTS):
            del module[kept:]
    config = model.get_base_model().config
    for name in LAYER_FIELDS:
        if getattr(config, name, None) == layers:
            setattr(config, name, kept)


def _time(trainable: Any, recipe: Recipe, examples: Sequence[Example], budget_s: float) -> Rates:
    """Time a small and a large micro-batch, with and without gradient, and the optimizer."""
    import torch

    from finetune.model.optimizer import make_optimizer

    share = min(1.0, SMALL_WEIGHTS / sum(parameter.numel() for parameter in trainable.model.parameters()))
    large, small = (
        _rows_of(examples, tokens) for tokens in (max(SMALL_TOKENS, LARGE_TOKENS * share), SMALL_TOKENS / 2)
    )
    optimizer = make_optimizer(trainable.model, recipe.training)

    def train(rows: Sequence[Example]) -> None:
        batch = trainable.forward.batch(rows)
        with trainable.autocast():
            loss = trainable.forward.loss(batch, max(1, batch.target_tokens))
        loss.backward()
        _wait(trainable)

    def evaluate(rows: Sequence[Example]) -> None:
        batch = trainable.forward.batch(rows)
        trainable.model.eval()
        with torch.no_grad(), trainable.autocast():
            trainable.forward.loss(batch, 1)
        trainable.model.train()
        _wait(trainable)

    train(small)  # warm-up: the first step loads kernels
    padded, lora = trainable.forward.padded, recipe.lora
    training = _line(train, (small, large), lora, budget_s * 0.6, padded=padded)
    evaluation = _line(evaluate, (small, large), lora, budget_s * 0.3, padded=padded)
    optimizer_s = _median_s(optimizer.step, budget_s * 0.1)
    optimizer.zero_grad(set_to_none=True)
    return Rates(training, evaluation, optimizer_s)


def _line(
    work: Callable[[Sequence[Example]], None], pair: tuple[Sequence[Example], Sequence[Example]], lora: LoraSection,
    budget_s: float, *, padded: bool,
) -> Line:  # fmt: skip
    small, large = pair
    few, many = (micro_batch_shape(rows_of(rows, lora), padded=padded).total for rows in (small, large))
    large_s = _median_s(lambda: work(large), budget_s * 0.7)
    if few >= many:
        return Line(0.0, large_s / many)
    small_s = _median_s(lambda: work(small), budget_s * 0.3)
    token_s = max(0.0, large_s - small_s) / (many - few)
    return Line(max(0.0, small_s - few * token_s), token_s)


def _median_s(work: Callable[[], None], budget_s: float) -> float:
    taken: list[float] = []
    while not taken or sum(taken) + taken[-1] < budget_s:
        begin_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin_s)
    return statistics.median(taken)


def _rows_of(examples: Sequence[Example], tokens: float) -> list[Example]:
    """Return rows of about the median length that have `tokens` tokens together; at least one."""
    middle = statistics.median(token_count(example) for example in examples)
    typical = sorted(examples, key=lambda example: abs(token_count(example) - middle))
    chosen: list[Example] = []
    for example in typical:
        if chosen and sum(map(token_count, chosen)) + token_count(example) > tokens:
            break
        chosen.append(example)
    return chosen


def _extrapolated(one: Rates, many: Rates, steps: float) -> Rates:
    """Extrapolate from one layer and from several: one layer plus `steps` times the difference."""

    def grown(first: float, last: float) -> float:
        return max(0.0, first + steps * (last - first))

    def line(first: Line, last: Line) -> Line:
        return Line(grown(first.fixed_s, last.fixed_s), grown(first.token_s, last.token_s))

    return Rates(
        line(one.training, many.training),
        line(one.evaluation, many.evaluation),
        grown(one.optimizer_s, many.optimizer_s),
    )


def _wait(trainable: Any) -> None:
    import torch

    if trainable.device_kind == "cuda":
        torch.cuda.synchronize()
