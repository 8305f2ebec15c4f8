"""`finetune estimate`: memory, disk and time of a run before it begins. Names torch."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config.schema import Recipe
from finetune.data.division import SETS
from finetune.data.prepare import has_set, prepare, read_set
from finetune.estimate.expected_times import expected_times
from finetune.estimate.machine import Machine, other_machine, this_machine
from finetune.estimate.timing import BUDGET_S, Measured, Rates, Sample, Times, measure
from finetune.model import trainable as training
from finetune.model.context_length import check_context, check_facts
from finetune.model.load import import_first
from finetune.sizing.devices import Device, find_device
from finetune.sizing.disk import disk_bytes
from finetune.sizing.fit_to_memory import MemoryOption, Scenario, assess, fit, single_options
from finetune.sizing.memory import ComputeSetting, Memory
from finetune.sizing.model_shape import Shape, shape_of_base, shape_of_facts
from finetune.sizing.step_plan import Plan, Row, assumed_rows, rows_of
from finetune.tokens.examples import Example
from finetune.tokens.labeller import tokenize_all
from finetune.tokens.row_reader import RowReader
from gladstone import run_folder
from gladstone.commands.progress import Progress, Silent, step
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.machine.gpu import WANTED, use_device
from gladstone.models.base_model import Base, find_local_base, resolve_base
from gladstone.models.embedded_model import EMBEDDED
from gladstone.process.redirect_output import redirect_output


@dataclass(frozen=True)
class Estimate:
    """Memory, disk and time of a run.

    `times` are None for a GPU whose rates are not known; `range_s` is the whole time at least and at most, if it is
    computed from a data sheet. `notes` say what was assumed, `options` lists changes that take less memory, `applied`
    is the one that was applied.
    """

    recipe: Recipe
    machine: str
    measured: bool
    limit_bytes: int
    memory: Memory
    disk: dict[str, int]
    plan: Plan
    rows: dict[str, list[Row]]
    times: Times | None
    fits: bool
    recomputes: bool
    notes: tuple[str, ...]
    options: tuple[MemoryOption, ...] = ()
    applied: MemoryOption | None = None
    range_s: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Subject:
    """What is estimated. Without the base on this machine `base` is None, without its rows `examples` is empty."""

    recipe: Recipe
    base: Base | None
    shape: Shape
    file_bytes: int
    rows: dict[str, list[Row]]
    examples: Sequence[Example]
    pad_id: int
    notes: tuple[str, ...]


def estimate(recipe: Recipe, progress: Progress, device_name: str | None = None, *, fitted: bool = False) -> Estimate:
    """Estimate a recipe on this machine (None, auto, cuda, cpu) or a named device; `fitted` changes it so that it fits.

    No weights are downloaded. Raises ConfigError for an unknown device or a base without facts, UnsupportedError if
    nothing makes it fit, and what reading the rows raises.
    """
    here = next((wanted for wanted in WANTED if wanted == (device_name or "auto")), None)
    device = None if here else find_device(device_name or "")
    training.prepare_environment()
    if here:
        use_device(here)
    with tempfile.TemporaryDirectory(prefix="gladstone-estimate-") as folder, redirect_output(Path(folder) / "log"):
        return _estimate(_subject(recipe, Path(folder), progress), device, progress, fitted=fitted)


def estimate_tokenized(recipe: Recipe, base: Base, sets: Mapping[str, Sequence[Example]]) -> Estimate:
    """Estimate a run whose rows are already tokenised; the time is computed, since its first steps measure it."""
    shape, file_bytes = shape_of_base(base)
    rows = {name: rows_of(sets[name], recipe.lora) for name in SETS}
    subject = _Subject(recipe, base, shape, file_bytes, rows, sets["train"], 0, ())
    return _estimate(subject, None, Silent(), fitted=False, measure=False)


def _subject(recipe: Recipe, folder: Path, progress: Progress) -> _Subject:
    base = find_local_base(recipe.base.model, progress)
    notes = []
    if base is not None:
        check_context(recipe, base)
        shape, file_bytes = shape_of_base(base)
        reader = RowReader(recipe, lambda: base, progress, before=import_first)
    else:
        if recipe.hub is None:
            raise ConfigError(
                f"base.model: {recipe.base.model} is not on this machine, and the recipe has no `hub:` facts. "
                "Download it, or state its architecture, parameters, layers, width and vocabulary under `hub:`."
            )
        check_facts(recipe, recipe.hub)
        shape, file_bytes = shape_of_facts(recipe.hub), 0
        embedded = resolve_base(EMBEDDED, progress)
        unnamed = recipe.base.model_copy(update={"chat_template": None})
        reader = RowReader(recipe.model_copy(update={"base": unnamed}), lambda: embedded, progress, before=import_first)
        notes.append(
            f"{recipe.base.model} is not on this machine: its shape comes from the recipe's facts, its rows are "
            "counted with the embedded model's tokenizer"
        )
    try:
        prepare(recipe.data, folder / run_folder.DATA, progress, reader.check if base is not None else None)
    except DataError:
        if not recipe.hub or not recipe.hub.rows or not recipe.data.sources[0].path.startswith("hub:"):
            raise
        rows = assumed_rows(recipe, recipe.data.max_rows or recipe.hub.rows)
        notes.append(f"the rows are not on this machine: counted as {recipe.hub.rows:,} rows of the maximum length")
        return _Subject(recipe, base, shape, file_bytes, rows, (), 0, tuple(notes))
    with step(progress, "Counting tokens"):
        sets, pad_id = _tokenized(reader, folder / run_folder.DATA)
    rows = {name: rows_of(sets[name], recipe.lora) for name in SETS}
    return _Subject(recipe, base, shape, file_bytes, rows, sets["train"], pad_id, tuple(notes))


def _tokenized(reader: RowReader, data: Path) -> tuple[dict[str, tuple[Example, ...]], int]:
    made_by = (reader.template, reader.tokenizer, reader.recipe.limits)
    pairs = reader.base.is_encoder_decoder
    sets: dict[str, tuple[Example, ...]] = dict.fromkeys(SETS, ())
    for name in SETS:
        if has_set(data, name):
            sets[name] = tokenize_all(read_set(data, name), *made_by, pairs=pairs).examples
    return sets, reader.tokenizer.padding_id


def _estimate(
    subject: _Subject, device: Device | None, progress: Progress, *, fitted: bool, measure: bool = True
) -> Estimate:
    machine = other_machine(device, subject.shape) if device else this_machine(subject.shape)
    measured: Measured | None = None
    if measure and device is None and subject.base is not None and subject.examples:
        with step(progress, "Measuring this machine"):
            measured = _measure(subject, subject.recipe)
        machine = replace(machine, setting=_as_measured(machine.setting, measured))
    scenario = Scenario(
        subject.shape, subject.recipe, machine.setting, subject.rows, machine.limit_bytes, subject.file_bytes
    )
    option = fit(scenario) if fitted else None
    if option and option.changes:
        scenario = replace(scenario, recipe=option.recipe, rows=option.rows)
        if measured is not None:
            with step(progress, "Measuring this machine as changed"):
                measured = _measure(subject, option.recipe)
    return _described(subject, scenario, machine, (measured.rates if measured else None, option))


def _as_measured(setting: ComputeSetting, measured: Measured) -> ComputeSetting:
    """The setting with what the measured model turned out to be; what a GPU computes in is known beforehand."""
    if setting.on_gpu:
        return setting
    return replace(setting, dtype_bytes=4 if measured.dtype == "float32" else 2, padded=measured.padded)


def _described(
    subject: _Subject, scenario: Scenario, machine: Machine, chosen: tuple[Rates | None, MemoryOption | None]
) -> Estimate:
    rates, option = chosen
    plan, memory, recomputes = assess(scenario)
    again = replace(scenario, setting=replace(scenario.setting, recomputes=recomputes))
    expected = expected_times(again, machine, plan, rates)
    notes = [*subject.notes, *expected.notes, *machine.notes(memory)]
    fits = memory.peak <= scenario.room_bytes
    return Estimate(
        recipe=scenario.recipe,
        machine=machine.name,
        measured=rates is not None,
        limit_bytes=int(scenario.limit_bytes),
        memory=memory,
        disk=disk_bytes(scenario.shape, scenario.recipe),
        plan=plan,
        rows=scenario.rows,
        times=expected.times,
        range_s=expected.range_s,
        fits=fits,
        recomputes=recomputes,
        notes=tuple(notes),
        options=() if fits else tuple(_options(scenario)),
        applied=option,
    )


def _options(scenario: Scenario) -> list[MemoryOption]:
    """Return the single changes, and last the combination that fits, if there is one."""
    options = single_options(scenario)
    try:
        return [*options, fit(scenario)]
    except UnsupportedError:
        return options


def _measure(subject: _Subject, recipe: Recipe) -> Measured:
    if subject.base is None:
        raise AssertionError("only a base on this machine is measured")
    sample = Sample(subject.base, subject.shape, subject.examples, subject.pad_id, BUDGET_S)
    return measure(sample, recipe)
