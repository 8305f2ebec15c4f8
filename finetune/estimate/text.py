"""An estimate as text for a terminal and as JSON."""

from typing import Any

from finetune.estimate.estimate import Estimate
from finetune.sizing.fit_to_memory import FITS, MemoryOption
from finetune.sizing.memory import Memory
from finetune.sizing.step_plan import epochs_text
from gladstone.machine.host import readable_bytes
from gladstone.report.durations import rough_duration

SHOWN_PARTS = ("process", "weights", "adapter", "optimizer", "activations")


def lines(estimate: Estimate) -> list[str]:
    """Render the estimate for a terminal, one line of text each."""
    plan, memory, recipe = estimate.plan, estimate.memory, estimate.recipe
    rows = estimate.rows["train"]
    lengths = [row.tokens for row in rows]
    recomputed = ", activations recomputed" if estimate.recomputes else ""
    rendered = [
        f"{recipe.name} on {estimate.machine}",
        f"  rows      {len(rows):,} to train on, {sum(lengths) / len(lengths):.0f} tokens on average, "
        f"{max(lengths):,} the longest; {len(estimate.rows['validation']):,} to validate, "
        f"{len(estimate.rows['test']):,} to test",
        f"  steps     {plan.steps:,} of {recipe.training.rows_per_step} rows ({epochs_text(plan.epochs)}), "
        f"{plan.tokens_per_step:,.0f} computed tokens each; largest micro-batch {plan.largest.total:,}{recomputed}",
        f"  memory    {readable_bytes(memory.peak)} at the peak; {readable_bytes(estimate.limit_bytes)} available"
        f"{'' if estimate.fits else ': IT DOES NOT FIT'}",
        f"            {_parts(memory)}",
        f"  disk      {', '.join(f'{name} {readable_bytes(size)}' for name, size in estimate.disk.items())}",
        f"  time      {_time(estimate)}",
    ]  # fmt: skip
    rendered += [f"  note      {note}" for note in estimate.notes]
    if estimate.applied and estimate.applied.changes:
        lost = f"; {estimate.applied.lost_rows:,} rows are lost" if estimate.applied.lost_rows else ""
        rendered.append(f"  changed   {' '.join(estimate.applied.set_lines)}{lost}")
    return rendered if estimate.fits else rendered + _option_lines(estimate)


def _time(estimate: Estimate) -> str:
    times = estimate.times
    if times is None:
        return "unknown until the first steps of a run have measured it"
    if estimate.range_s is not None:
        least, most = map(rough_duration, estimate.range_s)
        return f"{least} to {most} in all (rough: computed, not measured)"
    return (
        f"{rough_duration(times.total_s)} in all ({'measured' if estimate.measured else 'computed, not measured'}): "
        f"{rough_duration(times.epoch_s)} per epoch, {times.step_s:.2f} s per step, evaluations "
        f"{rough_duration(times.evaluation_s)}"
    )


def _option_lines(estimate: Estimate) -> list[str]:
    def fits(option: MemoryOption) -> bool:
        return option.memory.peak <= estimate.limit_bytes * FITS

    rendered = ["  settings that take less memory, the cheapest first:"]
    for option in estimate.options:
        lost = f", {option.lost_rows:,} rows lost" if option.lost_rows else ""
        mark = "  ← fits" if fits(option) else ""
        rendered.append(
            f"            {readable_bytes(option.memory.peak):>8}  {' '.join(option.set_lines)}{lost}{mark}"
        )
    if not any(map(fits, estimate.options)):
        rendered.append("            nothing makes it fit: choose a smaller base.model or another machine")
    return rendered


def as_json(estimate: Estimate) -> dict[str, Any]:
    """The numbers of an estimate, in bytes and seconds; null for a time that is not known."""
    times = estimate.times
    options = [
        {"changes": option.changes, "peak_bytes": option.memory.peak, "lost_rows": option.lost_rows}
        for option in estimate.options
    ]
    return {
        "recipe": estimate.recipe.name,
        "base": estimate.recipe.base.model,
        "machine": estimate.machine,
        "time_is": "measured" if estimate.measured else "computed" if times else "unknown",
        "fits": estimate.fits,
        "limit_bytes": estimate.limit_bytes,
        "memory_bytes": estimate.memory.as_dict(),
        "disk_bytes": estimate.disk,
        "steps": estimate.plan.steps,
        "steps_per_epoch": estimate.plan.steps_per_epoch,
        "epochs": estimate.plan.epochs,
        "rows": {name: len(rows) for name, rows in estimate.rows.items()},
        "largest_micro_batch_tokens": estimate.plan.largest.total,
        "activations_recomputed": estimate.recomputes,
        "total_s": times.total_s if times else None,
        "total_range_s": list(estimate.range_s) if estimate.range_s else None,
        "epoch_s": times.epoch_s if times else None,
        "step_s": times.step_s if times else None,
        "evaluation_s": times.evaluation_s if times else None,
        "notes": list(estimate.notes),
        "changes": estimate.applied.changes if estimate.applied else {},
        "memory_options": options,
        # names of version 0.1.0, which scripts may read
        "largest_micro_batch_slots": estimate.plan.largest.total,
        "ways": options,
    }


def _parts(memory: Memory) -> str:
    sizes = memory.as_dict()
    return ", ".join(f"{name} {readable_bytes(sizes[name])}" for name in SHOWN_PARTS)
