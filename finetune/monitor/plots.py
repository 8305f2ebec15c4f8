"""The plots of a finished run: losses, training metrics, row lengths, base against tuned. Names matplotlib.

The colours are those of Okabe and Ito, which are distinguishable with colour vision deficiency.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.monitor.metrics_log import History
from finetune.monitor.smoothing import losses, running_mean, speeds, thinned
from gladstone.artifacts import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, TRAINING, LENGTHS, BEFORE_AFTER = "loss.png", "training.png", "lengths.png", "before_after.png"
PLOTS = (LOSS, TRAINING, LENGTHS, BEFORE_AFTER)
BLUE, VERMILION, GREEN, PURPLE, PALE, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#a9cbe3", "#8a8f98"
LOSS_UNIT = "loss, nats per answer token"
BARS, LONG_TAIL, STEEP = 40, 2.0, 20.0


def plot_run(folder: Path, history: History, lengths: Sequence[int], held_out: tuple[float, float] | None) -> None:
    """Write PLOTS into `folder`, each atomically.

    `lengths` are the token counts of the training rows; `held_out` is the loss before and after, or None for no
    BEFORE_AFTER plot.
    """
    save_figure(loss_figure(history), folder / LOSS)
    save_figure(training_figure(history), folder / TRAINING)
    save_figure(lengths_figure(lengths), folder / LENGTHS)
    if held_out is None:
        (folder / BEFORE_AFTER).unlink(missing_ok=True)
    else:
        save_figure(before_after_figure(*held_out), folder / BEFORE_AFTER)


def loss_figure(history: History) -> "Figure":
    """Training loss per step, its running mean, and the validation loss with its minimum marked."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    numbers = [stats.step for stats in history.steps]
    draw_curve(axes, numbers, losses(history.steps), "training, each step", "training, running mean")
    if history.validation:
        at, values = zip(*history.validation, strict=True)
        axes.plot(at, values, "o-", color=VERMILION, linewidth=2, markersize=4, label="validation")
    if history.best is not None:
        step, loss = history.best
        label = f"best validation: {loss:.3f} at step {step:,}"
        axes.plot([step], [loss], "o", markersize=13, markerfacecolor="none", color="black", mew=1.5, label=label)
    shown = [value for _, value in history.validation] + [*running_mean(losses(history.steps))]
    _leave_out_spikes(axes, losses(history.steps), shown)
    axes.set_ylabel(LOSS_UNIT)
    step_axis(axes, numbers)
    legend_above(figure, axes)
    return figure


def training_figure(history: History) -> "Figure":
    """Learning rate, gradient norm before clipping, and throughput; marks steps that ran out of memory."""
    figure = new_figure(9, 8)
    rate, norm, speed = figure.subplots(3, sharex=True)
    numbers = [stats.step for stats in history.steps]
    curve = thinned(numbers, [stats.learning_rate for stats in history.steps])
    rate.plot(curve.steps, curve.values, _style(numbers), color=GREEN, linewidth=2, clip_on=False)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    norms = [stats.grad_norm for stats in history.steps]
    draw_curve(norm, numbers, norms, "each step", "running mean")
    norm.set_ylabel("gradient norm\nbefore clipping")
    if _is_steep(norms):
        norm.set_yscale("log")
    else:
        norm.set_ylim(bottom=0)
    draw_curve(speed, numbers, speeds(history.steps), "each step", "running mean")
    speed.set_ylabel("real tokens/s")
    speed.set_ylim(bottom=0)
    for axes in (rate, norm, speed):
        _mark_memory(axes, history)
        step_axis(axes, numbers, titled=axes is speed)
    legend_above(figure, norm)
    return figure


def lengths_figure(lengths: Sequence[int]) -> "Figure":
    """A histogram of the tokens per training row; the last bar collects a long tail."""
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    counts = np.asarray(lengths)
    median, p95, p99 = (int(value) for value in np.percentile(counts, [50, 95, 99]))
    end = int(counts.max()) if counts.max() <= LONG_TAIL * p99 else int(LONG_TAIL * p99)
    bars = min(BARS, 6 + 2 * math.isqrt(len(counts)))
    width = max(1, math.ceil((end - int(counts.min()) + 1) / bars))
    edges = np.arange(int(counts.min()), end + width + 1, width) - 0.5  # integers lie in the middle of their bins
    axes.hist(np.minimum(counts, edges[-1] - 0.5), bins=edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.5)
    axes.axvline(median, color=VERMILION, linewidth=2, label=f"median {median:,}")
    axes.axvline(p95, color="black", linewidth=1.5, linestyle="--", label=f"95th percentile {p95:,}")
    over = int((counts > edges[-1]).sum())
    tail = f"; {over:,} longer rows in the last bar" if over else ""
    axes.plot([], [], " ", label=f"longest {int(counts.max()):,}{tail}")
    axes.set_xlabel(f"tokens per training row ({len(counts):,} rows, {int(counts.sum()):,} tokens)")
    axes.set_ylabel("rows")
    axes.set_xlim(edges[0] - width, edges[-1] + width)
    _whole_ticks(axes, "xy")
    legend_above(figure, axes)
    return figure


def before_after_figure(before: float, after: float) -> "Figure":
    """Held-out loss of the base and of the tuned model, with the perplexity."""
    figure = new_figure(9, 2.8)
    axes = figure.subplots()
    bars = axes.barh(["base", "tuned"], [before, after], color=[GREY, BLUE], height=0.6)
    axes.bar_label(bars, [f"{loss:.3f}   perplexity {_perplexity(loss)}" for loss in (before, after)], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, max(before, after) * 1.45)
    change = f"{100 * abs(1 - after / before):.1f} % {'lower' if after < before else 'higher'}" if before else "no loss"
    axes.set_title(f"Test rows, mean of all answer tokens: {change}", loc="left")
    axes.set_xlabel(f"{LOSS_UNIT} (lower is better; mean without a confidence interval)")
    axes.grid(visible=False, axis="y")
    return figure


def new_figure(width_in: float, height_in: float) -> "Figure":
    """A new, empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Apply the common style and write the figure atomically."""
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_fontsize(12)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png")


def draw_curve(axes: "Axes", steps: Sequence[int], values: Sequence[float], raw_label: str, mean_label: str) -> None:
    """Draw values pale and their running mean dark; with more values than pixels, the range between the extremes."""
    raw, smooth = thinned(steps, values), thinned(steps, running_mean(values))
    if len(raw) < len(values) and not np.array_equal(raw.low, raw.high):
        axes.fill_between(
            raw.steps, raw.low, raw.high, color=PALE, linewidth=0, label=f"{raw_label} (lowest to highest)"
        )
    else:
        colour = PALE if len(steps) > 1 else BLUE
        axes.plot(raw.steps, raw.values, _style(steps), color=colour, linewidth=1, label=raw_label)
    if len(steps) > 1:
        axes.plot(smooth.steps, smooth.values, color=BLUE, linewidth=2, label=mean_label)


def step_axis(axes: "Axes", steps: Sequence[int], *, titled: bool = True) -> None:
    """An axis of integer steps from the first to the last."""
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    margin = max(0.5, (last - first) * 0.02)
    axes.set_xlim(first - margin, last + margin)
    _whole_ticks(axes, "x")
    if titled:
        axes.set_xlabel("optimizer step")


def legend_above(figure: "Figure", axes: "Axes") -> None:
    """Put the legend above the axes: a spike or a full histogram leaves no free corner."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3 if len(labels) < 5 else 2, frameon=False, fontsize=10
    )


def _whole_ticks(axes: "Axes", which: str) -> None:
    """Ticks at integers only, such as 20,000."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown: Callable[[float, int], str] = lambda value, _: f"{value:,.0f}"  # noqa: E731
    for name in which:
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(shown))


def _style(steps: Sequence[int]) -> str:
    return "o" if len(steps) == 1 else "-"  # a line through a single point is invisible


def _leave_out_spikes(axes: "Axes", values: Sequence[float], shown: Sequence[float]) -> None:
    """Limit the axis if a few steps lie far above all others, and add their number to the legend."""
    found = np.asarray([value for value in values if math.isfinite(value)])
    if not len(found):
        return
    usual = float(np.percentile(found, 98))
    top = max([usual, *(value for value in shown if math.isfinite(value))])
    bottom = min(float(found.min()), *(value for value in shown if math.isfinite(value)))
    if found.max() <= top + (top - bottom):
        return
    axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.15 * (top - bottom))
    above = int((found > axes.get_ylim()[1]).sum())
    axes.plot([], [], " ", label=f"{above:,} step{'s' if above > 1 else ''} above, up to {found.max():.3g}")


def _is_steep(values: Sequence[float]) -> bool:
    found = [value for value in values if math.isfinite(value) and value > 0]
    return bool(found) and max(found) > STEEP * float(np.median(found))


def _mark_memory(axes: "Axes", history: History) -> None:
    label: str | None = "out of memory: step retried in smaller batches"
    for event in history.events:
        if event["kind"] == "out of memory":
            axes.axvline(event["step"], color=PURPLE, linewidth=1.2, linestyle=":", label=label)
            label = None


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 20 else "over 10⁸"
