"""Overlaid curves: inline SVG that takes the page's fonts and colours, and the same as a picture. Names matplotlib."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from finetune.monitor.plots import LOSS_UNIT, legend_above, new_figure, save_figure, step_axis
from finetune.monitor.smoothing import losses, running_mean, thinned
from finetune.reports.compare.runs import Run
from gladstone.report.axis import round_ticks
from gladstone.report.terminal import one_line

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 64, 16, 24, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#4d4d4d")  # the page defines --run-0 … --run-5
DASHES = ("", "7 4", "2 3")  # from the seventh run on, colours come again with another line
SVG_POINTS, LEGEND_CHARACTERS = 240, 36


@dataclass(frozen=True)
class Line:
    """One run's curve; `place` numbers the run. `dotted` marks where it was measured."""

    place: int
    points: tuple[tuple[float, float], ...]
    dotted: bool = False


def training_lines(runs: Sequence[Run]) -> list[Line]:
    """Running means of the training losses."""
    found = []
    for place, run in enumerate(runs):
        steps = [stats.step for stats in run.history.steps]
        curve = thinned(steps, running_mean(losses(run.history.steps)), SVG_POINTS)
        found.append(Line(place, tuple(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))))
    return found


def validation_lines(runs: Sequence[Run]) -> list[Line]:
    """Validation losses."""
    return [
        Line(place, tuple((step, loss) for step, loss in run.history.validation if math.isfinite(loss)), dotted=True)
        for place, run in enumerate(runs)
    ]


def curves_svg(title: str, lines: Sequence[Line]) -> str:
    """Loss over steps, '' if no run has a point."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    across = ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    up = ticks(min(y for _, y in points), max(y for _, y in points))
    x_of = _scale(across, LEFT, WIDTH - RIGHT)
    y_of = _scale(up, HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="tick" x="0" y="12">{escape(LOSS_UNIT)}</text>']
    parts += [_grid(LEFT, WIDTH - RIGHT, y_of(tick), f"{tick:,.6g}") for tick in up]
    parts += [_below(x_of(tick), HEIGHT - BOTTOM + 18, f"{tick:,.0f}") for tick in across]
    parts.append(_below((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "optimizer step"))
    parts += [_drawn(line, [(x_of(x), y_of(y)) for x, y in line.points]) for line in lines if line.points]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> tuple[float, ...]:
    """Round values that enclose low and high."""
    least = 1.0 if whole else 1e-6 * max(1.0, abs(low))
    if high - low < least:
        low, high = low - least, high + least
    return round_ticks(low, high, count, factors=(1, 2, 5, 10), least=1.0 if whole else 0.0)


def write_picture(path: Path, runs: Sequence[Run]) -> None:
    """Training and validation losses of all runs, one above the other."""
    figure = new_figure(9, 8)
    panels = figure.subplots(2, sharex=True)
    steps = [stats.step for run in runs for stats in run.history.steps]
    for axes, lines, name in zip(
        panels, (training_lines(runs), validation_lines(runs)), ("training, running mean", "validation"), strict=True
    ):
        for line in lines:
            style = "o" if len(line.points) == 1 else "o-" if line.dotted else "-"
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                style,
                color=COLOURS[line.place % len(COLOURS)],
                dashes=_dashes(line.place),
                linewidth=2,
                markersize=4,
                label=_label(runs[line.place]),
            )
        axes.set_ylabel(f"{name}\n{LOSS_UNIT}")
        if not any(line.points for line in lines):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#666666")
        step_axis(axes, steps, titled=axes is panels[-1])
    legend_above(figure, panels[0])
    save_figure(figure, path)


def _label(run: Run) -> str:
    """A name as it is: matplotlib would take '$…$' for a formula, and leaves out names that begin with '_'."""
    text = one_line(run.label)
    shown = text if len(text) <= LEGEND_CHARACTERS else f"…{text[1 - LEGEND_CHARACTERS :]}"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _dashes(place: int) -> tuple[float, float] | tuple[()]:
    text = DASHES[place // len(COLOURS) % len(DASHES)].split()
    return (float(text[0]), float(text[1])) if text else ()


def _scale(found: Sequence[float], begin: float, end: float) -> Callable[[float], float]:
    low, high = found[0], found[-1]
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def _grid(left: float, right: float, y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{left - 8}" y="{y + 4:.1f}">{text}</text>'
    )


def _below(x: float, y: float, text: str) -> str:
    return f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _drawn(line: Line, pixels: Sequence[tuple[float, float]]) -> str:
    colour = f"var(--run-{line.place % len(COLOURS)})"
    dash = DASHES[line.place // len(COLOURS) % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    drawn = f'<polyline class="curve" style="stroke:{colour}" stroke-dasharray="{dash or "none"}" points="{path}"/>'
    if line.dotted or len(pixels) == 1:
        drawn += "".join(f'<circle style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in pixels)
    return drawn
