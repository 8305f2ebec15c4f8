"""The loss curves of several runs in one chart, as inline SVG and as PNG. Names matplotlib."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.monitor.plots import LOSS_UNIT, legend_above, new_figure, save_figure, step_axis
from finetune.monitor.smoothing import losses, running_mean, thinned
from finetune.reports.compare.runs import Run
from gladstone.report.svg_charts import Area, Line, Paint, legend_key, line_chart, linear_ticks, shorten_label
from gladstone.report.terminal import one_line

AREA = Area(720, 300, 64, 704, 24, 256)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#4d4d4d")  # the page defines --run-0 … --run-5
DASHES = ("", "7 4", "2 3")  # from the seventh run on, the colours repeat with another dash
SVG_POINTS, LEGEND_CHARACTERS = 240, 36


@dataclass(frozen=True)
class Curve:
    """A curve of the run with this number; `dotted` marks where it was measured."""

    run: int
    points: tuple[tuple[float, float], ...]
    dotted: bool = False


def training_curves(runs: Sequence[Run]) -> list[Curve]:
    """Running means of the training losses."""
    curves = []
    for number, run in enumerate(runs):
        steps = [stats.step for stats in run.history.steps]
        mean = thinned(steps, running_mean(losses(run.history.steps)), SVG_POINTS)
        curves.append(Curve(number, tuple(zip(mean.steps.tolist(), mean.values.tolist(), strict=True))))
    return curves


def validation_curves(runs: Sequence[Run]) -> list[Curve]:
    """Validation losses."""
    return [
        Curve(number, tuple((step, loss) for step, loss in run.history.validation if math.isfinite(loss)), dotted=True)
        for number, run in enumerate(runs)
    ]


def curves_svg(title: str, curves: Sequence[Curve]) -> str:
    """Loss over steps, '' if no run has a point."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    across = AREA.across(linear_ticks(min(steps), max(steps), whole=True), "optimizer step")
    up = AREA.up(linear_ticks(min(values), max(values)), LOSS_UNIT)
    lines = [Line(curve.points, run_paint(curve.run), "all" if curve.dotted else "") for curve in curves]
    return line_chart(title, AREA, (across, up), lines)


def run_paint(number: int) -> Paint:
    """How the run with this number is drawn."""
    colour, dash = f"var(--run-{number % len(COLOURS)})", DASHES[number // len(COLOURS) % len(DASHES)]
    return Paint(colour=colour, dash=dash)


def run_keys(count: int) -> list[str]:
    """The legend's key of each run."""
    return [legend_key(run_paint(number)) for number in range(count)]


def write_picture(path: Path, runs: Sequence[Run]) -> None:
    """Write a PNG with the training losses above the validation losses of all runs."""
    figure = new_figure(9, 8)
    panels = figure.subplots(2, sharex=True)
    steps = [stats.step for run in runs for stats in run.history.steps]
    drawn = {"training, running mean": training_curves(runs), "validation": validation_curves(runs)}
    for axes, (name, curves) in zip(panels, drawn.items(), strict=True):
        for curve in curves:
            style = "o" if len(curve.points) == 1 else "o-" if curve.dotted else "-"
            axes.plot(
                [x for x, _ in curve.points],
                [y for _, y in curve.points],
                style,
                color=COLOURS[curve.run % len(COLOURS)],
                dashes=_dashes(curve.run),
                linewidth=2,
                markersize=4,
                label=_label(runs[curve.run]),
            )
        axes.set_ylabel(f"{name}\n{LOSS_UNIT}")
        if not any(curve.points for curve in curves):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#666666")
        step_axis(axes, steps, titled=axes is panels[-1])
    legend_above(figure, panels[0])
    save_figure(figure, path)


def _label(run: Run) -> str:
    """A name for matplotlib, which renders '$…$' as a formula and hides names that start with '_'."""
    shown = shorten_label(one_line(run.label), LEGEND_CHARACTERS, keep_end=True).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _dashes(number: int) -> tuple[float, ...]:
    return tuple(map(float, run_paint(number).dash.split()))
