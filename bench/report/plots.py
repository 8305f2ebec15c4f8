"""Plots as inline SVG: they take the page's fonts and colours, so they read in the dark as well as in the light."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.report.number_format import figure
from bench.results import Report, Result, Spread
from gladstone.report.axis import round_ticks

WIDTH, RIGHT, ROW, BAND_GAP, AXIS = 720, 24, 18, 10, 34
LABEL_CHARACTERS, CHARACTER_WIDTH = 30, 7
COLOURS = 6  # the page defines --model-0 … --model-5


@dataclass(frozen=True)
class Mark:
    """A value with its whisker and, where there are some, the single measurements; `colour` numbers the model."""

    value: float
    low: float
    high: float
    colour: int
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Band:
    """A labelled strip of marks."""

    label: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels with round ticks."""

    title: str
    ticks: tuple[float, ...]
    begin: float
    end: float

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def perplexity_plot(report: Report) -> str:
    """Perplexity of each model with its interval."""
    bands = [
        Band(row.model.label, (_mark(row.results["perplexity"], place),)) for place, row in enumerate(report.models)
    ]
    return _strips("Perplexity with 95 % interval (lower is better)", bands, from_zero=False)


def scores_plot(report: Report) -> str:
    """Every metric that lies in [0, 1], the models side by side."""
    found = [row.results for row in report.models]
    names = [info for info in report.metrics if info.higher_is_better and any(info.name in each for each in found)]
    bands = [
        Band(info.title, tuple(_mark(each[info.name], place) for place, each in enumerate(found) if info.name in each))
        for info in names
    ]
    return _strips("Score with 95 % interval (higher is better)", bands, from_zero=True)


def decode_plot(report: Report) -> str:
    """Decode speed: every round as a dot, the median as a bar over the spread."""
    bands = []
    for place, row in enumerate(report.models):
        dots = tuple(run.decode_tokens_per_s for run in row.measured.speed)
        bands.append(Band(row.model.label, (_mark(row.speed["decode_tokens_per_s"], place, dots),)))
    return _strips("Decode, tokens/s: each round, median and spread", bands, from_zero=True)


def size_plot(report: Report) -> str:
    """File size against perplexity: what a quantisation saves and what it costs."""
    height, left = 260, 64
    sizes = [row.model.size_bytes / 1e6 for row in report.models]
    results = [row.results["perplexity"] for row in report.models]
    across = Axis("file size, MB", _ticks(0, max(sizes) * 1.1), left, WIDTH - 190)
    lows, highs = [result.low for result in results], [result.high for result in results]
    up = Axis("perplexity", _ticks(min(lows), max(highs)), height - AXIS, 24)
    parts = [f'<text class="tick" x="{left}" y="12">{up.title}</text>']
    parts += [_grid_line(across.place(tick), up.begin, up.end, figure_tick(tick)) for tick in across.ticks]
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{across.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{left - 8}" y="{y + 4:.1f}">{figure_tick(tick)}</text>')
    for place, (size, result) in enumerate(zip(sizes, results, strict=True)):
        x, y, colour = across.place(size), up.place(result.mean), _colour(place)
        parts.append(
            f'<line class="whisker" style="stroke:{colour}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{up.place(result.low):.1f}" y2="{up.place(result.high):.1f}"/>'
            f'<circle style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text class="label" x="{x + 10:.1f}" y="{y + 4:.1f}">{_short(report.models[place].model.label)}</text>'
        )
    parts.append(f'<text class="tick" x="{across.end + 24:.1f}" y="{height - AXIS + 18}">{across.title}</text>')
    return _svg("File size and perplexity with 95 % interval", height, parts)


def figure_tick(value: float) -> str:
    """A tick without needless zeros."""
    return f"{value:,.6g}"


def _mark(value: Result | Spread, colour: int, dots: tuple[float, ...] = ()) -> Mark:
    middle = value.mean if isinstance(value, Result) else value.median
    return Mark(middle, value.low, value.high, colour, dots)


def _strips(title: str, bands: Sequence[Band], *, from_zero: bool) -> str:
    """Horizontal strips under one axis, one line for each mark."""
    left = 24 + CHARACTER_WIDTH * max(len(_cut(band.label)) for band in bands)
    lows = [mark.low for band in bands for mark in band.marks]
    highs = [mark.high for band in bands for mark in band.marks]
    axis = Axis(title, _ticks(0 if from_zero else min(lows), max(highs)), left, WIDTH - RIGHT - 48)
    heights = [ROW * len(band.marks) + BAND_GAP for band in bands]
    bottom = 8 + sum(heights)
    parts = [_grid_line(axis.place(tick), bottom, 4, figure_tick(tick)) for tick in axis.ticks]
    top = 8.0
    for band, height in zip(bands, heights, strict=True):
        middle = top + (height - BAND_GAP) / 2
        parts.append(
            f'<text class="label" text-anchor="end" x="{left - 12}" y="{middle + 4:.1f}">{_short(band.label)}</text>'
        )
        parts += [_mark_svg(mark, axis, top + ROW * (line + 0.5)) for line, mark in enumerate(band.marks)]
        top += height
    return _svg(title, bottom + AXIS - 8, parts)


def _mark_svg(mark: Mark, axis: Axis, y: float) -> str:
    colour, x, low, high = _colour(mark.colour), *map(axis.place, (mark.value, mark.low, mark.high))
    dots = "".join(
        f'<circle class="dot" style="fill:{colour}" cx="{axis.place(dot):.1f}" cy="{y:.1f}" r="3"/>'
        for dot in mark.dots
    )
    ends = "".join(
        f'<line class="whisker" style="stroke:{colour}" x1="{x_end:.1f}" x2="{x_end:.1f}" '
        f'y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
        for x_end in (low, high)
    )
    middle = (
        f'<rect style="fill:{colour}" x="{x - 2:.1f}" y="{y - 7:.1f}" width="4" height="14" rx="1"/>'
        if mark.dots
        else f'<circle style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    )
    line = f'<line class="whisker" style="stroke:{colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    value = f'<text class="tick" x="{max(high, x) + 10:.1f}" y="{y + 4:.1f}">{figure(mark.value)}</text>'
    return line + ends + dots + middle + value


def _grid_line(x: float, bottom: float, top: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 18:.1f}">{text}</text>'
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float, count: int = 6) -> tuple[float, ...]:
    """Round values that enclose low and high."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return round_ticks(low, high, count)


def _colour(place: int) -> str:
    return f"var(--model-{place % COLOURS})"


def _cut(text: str) -> str:
    return text if len(text) <= LABEL_CHARACTERS else f"…{text[1 - LABEL_CHARACTERS :]}"


def _short(text: str) -> str:
    return escape(_cut(text))
