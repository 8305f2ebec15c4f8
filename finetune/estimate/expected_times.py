"""How long a run will take: measured, computed from a rate, or not known before its first steps."""

from dataclasses import dataclass

from finetune.estimate.machine import Machine
from finetune.estimate.timing import Rates, Times, compiles, computed_rates, times
from finetune.sizing.devices import EFFICIENCIES, EFFICIENCY
from finetune.sizing.fit_to_memory import Scenario
from finetune.sizing.step_plan import Plan


@dataclass(frozen=True)
class ExpectedTimes:
    """The times, None if they are not known; `range_s` is the whole time at least and at most, if that is rough."""

    times: Times | None
    range_s: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def expected_times(scenario: Scenario, machine: Machine, plan: Plan, measured: Rates | None) -> ExpectedTimes:
    """Return the times of a plan; of a GPU only from measured or published rates, never from the CPU's."""
    compiled = machine.is_here and compiles(scenario.shape, scenario.recipe, plan, scenario.setting)
    notes = ("the layers will be compiled: the time saved is assumed from other runs",) if compiled else ()
    if measured is not None:
        return ExpectedTimes(times(plan, measured, compiled=compiled), notes=notes)
    device = machine.rates(scenario.shape)
    if device is None:
        return ExpectedTimes(None, notes=("the rates of this GPU are not known: a run measures its first steps",))

    def at(efficiency: float) -> Times:
        rates = computed_rates(scenario.shape, scenario.recipe, plan, device, scenario.setting, efficiency)
        return times(plan, rates, compiled=compiled)

    peak = (device.float32_flop_per_s if scenario.setting.held_bytes == 4 else device.flop_per_s) / 1e12
    if not scenario.setting.on_gpu:
        note = f"the time is computed, not measured: {EFFICIENCY:.0%} of {peak:.1f} TFLOP/s"
        return ExpectedTimes(at(EFFICIENCY), notes=(note, *notes))
    least, most = EFFICIENCIES
    note = (
        f"the time is rough, computed and not measured: {least:.0%} to {most:.0%} of the {peak:.1f} TFLOP/s of "
        f"{device.name}'s data sheet"
    )
    return ExpectedTimes(at(EFFICIENCY), (at(most).total_s, at(least).total_s), (note,))
