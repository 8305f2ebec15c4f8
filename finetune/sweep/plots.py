"""The charts of a sweep."""

from collections.abc import Sequence
from typing import Any

from finetune.monitor.plots import LOSS_UNIT
from finetune.sweep.results import Row, Table
from finetune.sweep.search_space import setting_text
from finetune.sweep.table import short_names
from gladstone.report.svg_charts import (
    BASELINE,
    Area,
    Axis,
    Line,
    Mark,
    Paint,
    Strip,
    dot,
    line_chart,
    linear_ticks,
    log_ticks,
    shorten_label,
    strip_chart,
    svg,
    text,
)

WIDTH, LABEL_CHARACTERS = 720, 34
CURVES_AREA = Area(WIDTH, 272, 60, 640, 24, 230)
FIELD_AREA = Area(360, 208, 60, 344, 12, 180)
INSET, CHARACTER_WIDTH = 16, 6.4
NUMBER_HEIGHT, MAX_NUMBERS = 11, 16
LOG_RATIO = 20  # of the highest to the lowest value, from which a logarithmic axis shows more


def losses_plot(table: Table) -> str:
    """The lowest validation loss of each trial, with the best trial highlighted."""
    rows = [row for row in table.rows if row.metrics.validation_loss is not None]
    if not rows:
        return ""
    strips, losses = [], [row.metrics.validation_loss or 0.0 for row in rows]
    for row, loss in zip(rows, losses, strict=True):
        label = " · ".join([str(row.number), *map(setting_text, row.settings.values())])
        strips.append(Strip(shorten_label(label, LABEL_CHARACTERS), [Mark(loss, f"{loss:.4f}", _paint(table, row))]))
    ticks = linear_ticks(min(losses), max(losses))
    return strip_chart("Lowest validation loss of each trial", strips, ticks, gap=2, width=WIDTH)


def curves_plot(table: Table) -> str:
    """Validation loss over the optimizer steps."""
    rows = [row for row in table.rows if row.metrics.validation]
    if not rows:
        return ""
    steps, losses = zip(*(point for row in rows for point in row.metrics.validation), strict=True)
    across = CURVES_AREA.across(linear_ticks(0, max(steps), whole=True), "optimizer step")
    up = CURVES_AREA.up(linear_ticks(min(losses), max(losses)), LOSS_UNIT)
    best_on_top = sorted(rows, key=lambda row: row is table.best)
    lines = [Line(row.metrics.validation, _paint(table, row), "end") for row in best_on_top]
    ends = [(*row.metrics.validation[-1], row.number) for row in rows]
    numbers = _numbers([(up.pixel(loss), across.pixel(step), number) for step, loss, number in ends])
    return line_chart("Validation loss while training", CURVES_AREA, (across, up), lines, numbers)


def _numbers(ends: list[tuple[float, float, int]]) -> list[str]:
    """The numbers of the trials next to the ends (y, x) of their curves, spaced apart at equal steps."""
    lowest: dict[float, float] = {}
    parts = []
    for y, x, number in sorted(ends):
        lowest[x] = max(y, lowest.get(x, 0.0) + NUMBER_HEIGHT)
        parts.append(text((x + 8, lowest[x] + BASELINE), str(number)))
    return parts if len(ends) <= MAX_NUMBERS else []


def field_plots(table: Table) -> list[tuple[str, str]]:
    """The name of each field, and a plot of the lowest validation loss over its values."""
    rows = [row for row in table.rows if row.metrics.validation_loss is not None]
    names = zip(table.fields, short_names(table.fields), strict=True)
    return [(title, _field_plot(table, rows, name, title)) for name, title in names if rows]


def _field_plot(table: Table, rows: Sequence[Row], name: str, title: str) -> str:
    losses = [row.metrics.validation_loss or 0.0 for row in rows]
    up = FIELD_AREA.up(linear_ticks(min(losses), max(losses), 5))
    marks, pixels = _across([row.settings[name] for row in rows])
    parts = [*FIELD_AREA.levels(up.marks()), *FIELD_AREA.columns(marks)]
    for row, loss in sorted(zip(rows, losses, strict=True), key=lambda pair: pair[0] is table.best):
        place = (pixels[_key(row.settings[name])], up.pixel(loss))
        parts.append(dot(place, _paint(table, row), radius=4.5, title=f"trial {row.number}: {loss:.4f}"))
    return svg(f"{title} and validation loss", FIELD_AREA.width, FIELD_AREA.height, parts)


def _across(values: Sequence[Any]) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """Ticks with their texts, and the pixel of each value: on a scale if all are numbers, else as categories."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high >= LOG_RATIO * low
        axis = FIELD_AREA.across(log_ticks(low, high) if log else linear_ticks(low, high, 4), inset=INSET, log=log)
        marks = [(axis.pixel(tick), setting_text(tick)) for tick in axis.ticks]
        return marks, {_key(value): axis.pixel(value) for value in values}
    keys = list(dict.fromkeys(map(_key, values)))
    axis = Axis((-0.5, len(keys) - 0.5), FIELD_AREA.left, FIELD_AREA.right)
    characters = int((axis.end - axis.start) / len(keys) / CHARACTER_WIDTH)
    pixels = {key: axis.pixel(number) for number, key in enumerate(keys)}
    return [(pixel, shorten_label(key, characters)) for key, pixel in pixels.items()], pixels


def _key(value: Any) -> str:
    return repr(value) if isinstance(value, float) else setting_text(value)


def _paint(table: Table, row: Row) -> Paint:
    return Paint("best" if row is table.best else "given-up" if row.state in ("pruned", "failed") else "other")
