"""Plots of a sweep as inline SVG: they take the page's fonts and colours, in the dark as in the light."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from finetune.sweep.results import Row, Table
from finetune.sweep.search_space import setting_text
from finetune.sweep.table import short_names
from gladstone.report.axis import round_ticks

LABEL_CHARACTERS, CHARACTER_WIDTH, ROW = 34, 6.4, 20
NUMBER_HEIGHT, MOST_NUMBERS = 11, 16
LOG_FROM = 20  # times the lowest value that the highest is from where on a logarithmic axis shows more


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to pixels, with its ticks."""

    ticks: tuple[float, ...]
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = ((math.log(each) if self.log else each) for each in (self.ticks[0], self.ticks[-1], value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def losses_plot(table: Table) -> str:
    """The lowest validation loss of each trial, the best one in the colour of the page."""
    rows = [row for row in table.rows if row.figures.validation_loss is not None]
    if not rows:
        return ""
    labels = [_cut(" · ".join([str(row.number), *map(setting_text, row.settings.values())])) for row in rows]
    left = 16 + CHARACTER_WIDTH * max(map(len, labels))
    losses = [row.figures.validation_loss or 0.0 for row in rows]
    axis = Axis(_ticks(min(losses), max(losses)), left, 660)
    bottom = 8 + ROW * len(rows)
    parts = [_upright(axis.place(tick), 4, bottom, tick) for tick in axis.ticks]
    for place, (row, label, loss) in enumerate(zip(rows, labels, losses, strict=True)):
        x, y = axis.place(loss), 8 + ROW * (place + 0.5)
        parts.append(
            f'<text class="label" text-anchor="end" x="{left - 10:.1f}" y="{y + 4:.1f}">{escape(label)}</text>'
            f'<circle class="{_tone(table, row)}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text class="tick" x="{x + 10:.1f}" y="{y + 4:.1f}">{loss:.4f}</text>'
        )
    return _svg("Lowest validation loss of each trial", 720, bottom + 28, parts)


def curves_plot(table: Table) -> str:
    """Validation loss over the optimizer steps."""
    rows = [row for row in table.rows if row.figures.validation]
    if not rows:
        return ""
    points = [point for row in rows for point in row.figures.validation]
    across = Axis(_ticks(0, max(step for step, _ in points)), 60, 640)
    up = Axis(_ticks(min(loss for _, loss in points), max(loss for _, loss in points)), 230, 16)
    parts = [_upright(across.place(tick), up.end, up.begin, tick) for tick in across.ticks]
    parts += [_level(up.place(tick), across, tick) for tick in up.ticks]
    ends: list[tuple[float, float, int]] = []
    for row in sorted(rows, key=lambda row: row is table.best):  # the best one lies on top
        places = [(across.place(step), up.place(loss)) for step, loss in row.figures.validation]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        (x, y), tone = places[-1], _tone(table, row)
        parts.append(
            f'<polyline class="curve {tone}" points="{line}"/>'
            f'<circle class="{tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        )
        ends.append((y, x, row.number))
    parts += _numbers(ends)
    parts.append('<text class="tick" text-anchor="end" x="640" y="266">optimizer step</text>')
    return _svg("Validation loss while training", 720, 272, parts)


def _numbers(ends: list[tuple[float, float, int]]) -> list[str]:
    """The trials' numbers beside the ends of their curves; those at the same step keep their distance."""
    lowest: dict[float, float] = {}
    parts = []
    for y, x, number in sorted(ends):
        lowest[x] = max(y, lowest.get(x, 0.0) + NUMBER_HEIGHT)
        parts.append(f'<text class="tick" x="{x + 8:.1f}" y="{lowest[x] + 4:.1f}">{number}</text>')
    return parts if len(ends) <= MOST_NUMBERS else []


def field_plots(table: Table) -> list[tuple[str, str]]:
    """For each field its name and its values against the lowest validation loss."""
    rows = [row for row in table.rows if row.figures.validation_loss is not None]
    names = zip(table.fields, short_names(table.fields), strict=True)
    return [(title, _field_plot(table, rows, name, title)) for name, title in names if rows]


def _field_plot(table: Table, rows: Sequence[Row], name: str, title: str) -> str:
    values = [row.settings[name] for row in rows]
    losses = [row.figures.validation_loss or 0.0 for row in rows]
    up = Axis(_ticks(min(losses), max(losses), 5), 180, 12)
    parts = [_level(up.place(tick), Axis((0, 1), 60, 344), tick) for tick in up.ticks]
    marks, across = _across(values)
    parts += [_upright(x, up.end, up.begin, text) for x, text in marks]
    for row, value, loss in sorted(zip(rows, values, losses, strict=True), key=lambda each: each[0] is table.best):
        parts.append(
            f'<circle class="{_tone(table, row)}" cx="{across[_key(value)]:.1f}" cy="{up.place(loss):.1f}" r="4.5">'
            f"<title>trial {row.number}: {loss:.4f}</title></circle>"
        )
    return _svg(f"{title} and validation loss", 360, 208, parts)


def _across(values: Sequence[Any]) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """Ticks with their texts, and the pixel of each value: on a scale if all are numbers, else side by side."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high >= LOG_FROM * low
        axis = Axis(_powers(low, high) if log else _ticks(low, high, 4), 76, 328, log)
        return [(axis.place(tick), setting_text(tick)) for tick in axis.ticks], {
            _key(value): axis.place(value) for value in values
        }
    texts = list(dict.fromkeys(map(_key, values)))
    axis = Axis((-0.5, len(texts) - 0.5), 60, 344)
    room = int(284 / len(texts) / CHARACTER_WIDTH)
    return [(axis.place(place), _cut(text, room)) for place, text in enumerate(texts)], {
        text: axis.place(place) for place, text in enumerate(texts)
    }


def _key(value: Any) -> str:
    return repr(value) if isinstance(value, float) else setting_text(value)


def _tone(table: Table, row: Row) -> str:
    return "best" if row is table.best else "given-up" if row.state in ("pruned", "failed") else "other"


def _upright(x: float, top: float, bottom: float, tick: float | str) -> str:
    text = tick if isinstance(tick, str) else f"{tick:,.6g}"
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 18:.1f}">{escape(text)}</text>'
    )


def _level(y: float, across: Axis, tick: float) -> str:
    return (
        f'<line class="grid" x1="{across.begin:.1f}" x2="{across.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{across.begin - 8:.1f}" y="{y + 4:.1f}">{tick:,.6g}</text>'
    )


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float, count: int = 6) -> tuple[float, ...]:
    """Round values that enclose low and high."""
    if high <= low:
        pad = abs(low) / 10 or 0.5
        low, high = low - pad, low + pad
    return round_ticks(low, high, count)


def _powers(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten that enclose low and high."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return tuple(10.0**power for power in range(first, last + 1))


def _cut(text: str, characters: int = LABEL_CHARACTERS) -> str:
    return text if len(text) <= characters else f"{text[: max(1, characters - 1)]}…"
