"""Charts as inline SVG: axes with round ticks, lines, dots with whiskers, strips, and legend keys.

A chart takes fonts and colours from its page, so it works on dark and light pages. The page's style sheet defines the
classes `grid`, `tick`, `label`, `curve`, `whisker` and `dot`, and the colours that a `Paint` names.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
Pixels = tuple[float, float]

FACTORS, WHOLE_FACTORS = (1, 2, 2.5, 5, 10), (1, 2, 5, 10)
NEGLIGIBLE = 1e-6  # a range that is a smaller share of its values is drawn as a single value
LABEL_GAP, TICK_DROP, BASELINE = 8, 18, 4  # pixels: axis to label, axis to tick text, middle to baseline of a text
STRIP_ROW, STRIP_TOP, STRIP_RIGHT = 18, 8, 72


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to pixels, with ticks; `name` labels it."""

    ticks: tuple[float, ...]
    start: float
    end: float
    name: str = ""
    log: bool = False

    def pixel(self, value: float) -> float:
        """The pixel of a value."""
        low, high, position = (self._position(number) for number in (self.ticks[0], self.ticks[-1], value))
        return self.start + (position - low) / (high - low) * (self.end - self.start)

    def marks(self) -> list[tuple[float, str]]:
        """The pixel and the text of each tick."""
        return [(self.pixel(tick), tick_text(tick)) for tick in self.ticks]

    def _position(self, value: float) -> float:
        return math.log(value) if self.log else value


def linear_ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> tuple[float, ...]:
    """About `count` round values that enclose low and high; `whole` allows only integers.

    >>> linear_ticks(0, 9)
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    if high - low < (1.0 if whole else NEGLIGIBLE * max(1.0, abs(low))):
        pad = 1.0 if whole else abs(low) / 10 or 0.5
        low, high = low - pad, high + pad
    rough = max((high - low) / (count - 1), 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (WHOLE_FACTORS if whole else FACTORS) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten that enclose low and high, both greater than 0.

    >>> log_ticks(0.02, 3)
    (0.01, 0.1, 1.0, 10.0)
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return tuple(10.0**power for power in range(first, last + 1))


def tick_text(value: float) -> str:
    """Format a tick's value without trailing zeros."""
    return f"{value:,.6g}"


@dataclass(frozen=True)
class Paint:
    """How a line or a dot is painted: by a class of the page's style sheet, or by a CSS colour, with a dash pattern."""

    style_class: str = ""
    colour: str = ""
    dash: str = ""

    def attributes(self, painted: str, style_class: str = "") -> str:
        """SVG attributes; `painted` is the CSS property for the colour: fill or stroke."""
        classes = " ".join(filter(None, (style_class, self.style_class)))
        parts = [f'class="{classes}"'] if classes else []
        parts += [f'style="{painted}:{self.colour}"'] if self.colour else []
        parts += [f'stroke-dasharray="{self.dash}"'] if self.dash else []
        return " ".join(parts)


@dataclass(frozen=True)
class Area:
    """A chart's width and height, and the edges of its plot area, in pixels."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def across(self, ticks: tuple[float, ...], name: str = "", *, inset: float = 0.0, log: bool = False) -> Axis:
        """The horizontal axis, `inset` pixels inside both edges."""
        return Axis(ticks, self.left + inset, self.right - inset, name, log)

    def up(self, ticks: tuple[float, ...], name: str = "") -> Axis:
        """The vertical axis."""
        return Axis(ticks, self.bottom, self.top, name)

    def columns(self, marks: Iterable[tuple[float, str]]) -> list[str]:
        """Vertical grid lines with their texts below."""
        return [
            _grid_line((x, self.top), (x, self.bottom)) + text((x, self.bottom + TICK_DROP), label, anchor="middle")
            for x, label in marks
        ]

    def levels(self, marks: Iterable[tuple[float, str]]) -> list[str]:
        """Horizontal grid lines with their texts to the left."""
        return [
            _grid_line((self.left, y), (self.right, y))
            + text((self.left - LABEL_GAP, y + BASELINE), label, anchor="end")
            for y, label in marks
        ]


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y), with dots at all points or at its end; a single point always gets a dot."""

    points: Sequence[Point]
    paint: Paint
    dots: str = ""  # "all", "end" or ""


@dataclass(frozen=True)
class Mark:
    """A value on a strip with its text, an optional whisker (low, high), and single measurements as dots."""

    value: float
    text: str
    paint: Paint
    whisker: tuple[float, float] | None = None
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Strip:
    """A labelled row of a strip chart, with one line for each mark."""

    label: str
    marks: Sequence[Mark]


def line_chart(
    title: str, area: Area, axes: tuple[Axis, Axis], lines: Iterable[Line], labels: Iterable[str] = ()
) -> str:
    """A chart of curves over a grid, with `labels` on top; `axes` are the horizontal and the vertical one."""
    across, up = axes
    parts = grid(area, across, up)
    for line in lines:
        parts += polyline(line, [(across.pixel(x), up.pixel(y)) for x, y in line.points])
    return svg(title, area.width, area.height, [*parts, *labels])


def grid(area: Area, across: Axis, up: Axis) -> list[str]:
    """Grid lines at the ticks, and the axes' names: below the horizontal axis, above the vertical one."""
    middle = (area.left + area.right) / 2
    names = [text((middle, area.height - 6), across.name, anchor="middle"), text((0, 12), up.name)]
    return [*area.columns(across.marks()), *area.levels(up.marks()), *names]


def polyline(line: Line, pixels: Sequence[Pixels]) -> list[str]:
    """A curve and its dots."""
    if not pixels:
        return []
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    dotted = pixels if line.dots == "all" else pixels[-1:] if line.dots == "end" or len(pixels) == 1 else []
    dots = [dot(position, Paint(line.paint.style_class, line.paint.colour), radius=3.5) for position in dotted]
    return [f'<polyline {line.paint.attributes("stroke", "curve")} points="{path}"/>', *dots]


def strip_chart(title: str, strips: Sequence[Strip], ticks: tuple[float, ...], *, gap: float, width: float) -> str:
    """A chart of rows of marks above one axis, `gap` pixels apart, with labels on the left."""
    left = 24 + max(label_width(strip.label) for strip in strips)
    heights = [STRIP_ROW * len(strip.marks) + gap for strip in strips]
    bottom = STRIP_TOP + sum(heights)
    area = Area(width, bottom + 26, left, width - STRIP_RIGHT, 4, bottom)
    axis = area.across(ticks)
    parts = area.columns(axis.marks())
    top = float(STRIP_TOP)
    for strip, height in zip(strips, heights, strict=True):
        middle = top + (height - gap) / 2
        parts.append(text((left - 12, middle + BASELINE), strip.label, anchor="end", style_class="label"))
        parts += [_mark(mark, axis, top + STRIP_ROW * (line + 0.5)) for line, mark in enumerate(strip.marks)]
        top += height
    return svg(title, area.width, area.height, parts)


def label_width(label: str) -> float:
    """Approximate width of a label in pixels."""
    return 7.0 * len(label)


def _mark(mark: Mark, axis: Axis, y: float) -> str:
    x = axis.pixel(mark.value)
    low, high = (axis.pixel(end) for end in mark.whisker) if mark.whisker else (x, x)
    parts = []
    if mark.whisker:
        parts.append(whisker((low, y), (high, y), mark.paint))
        parts += [whisker((end, y - 4), (end, y + 4), mark.paint) for end in (low, high)]
    parts += [dot((axis.pixel(value), y), mark.paint, radius=3, style_class="dot") for value in mark.dots]
    if mark.dots:
        fill = mark.paint.attributes("fill")
        parts.append(f'<rect {fill} x="{x - 2:.1f}" y="{y - 7:.1f}" width="4" height="14" rx="1"/>')
    else:
        parts.append(dot((x, y), mark.paint))
    return "".join([*parts, text((max(high, x) + 10, y + BASELINE), mark.text)])


def whisker(start: Pixels, end: Pixels, paint: Paint) -> str:
    """A line that shows an interval."""
    return f"<line {paint.attributes('stroke', 'whisker')} {_ends(start, end)}/>"


def dot(position: Pixels, paint: Paint, *, radius: float = 5, style_class: str = "", title: str = "") -> str:
    """A filled circle; `title` is its tooltip."""
    circle = (
        f'<circle {paint.attributes("fill", style_class)} cx="{position[0]:.1f}" cy="{position[1]:.1f}" r="{radius:g}"'
    )
    return f"{circle}><title>{escape(title)}</title></circle>" if title else f"{circle}/>"


def text(position: Pixels, content: str, *, anchor: str = "", style_class: str = "tick") -> str:
    """A text at a position, where it begins, or has its middle or end (`anchor`)."""
    aligned = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{style_class}"{aligned} x="{position[0]:.1f}" y="{position[1]:.1f}">{escape(content)}</text>'


def legend_key(paint: Paint) -> str:
    """A short sample of a line for a legend."""
    line = f'<line x1="0" x2="26" y1="5" y2="5" stroke-width="4" {paint.attributes("stroke")}/>'
    return f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'


def svg(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """The complete image; the title is for screen readers."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _grid_line(start: Pixels, end: Pixels) -> str:
    return f'<line class="grid" {_ends(start, end)}/>'


def _ends(start: Pixels, end: Pixels) -> str:
    return f'x1="{start[0]:.1f}" x2="{end[0]:.1f}" y1="{start[1]:.1f}" y2="{end[1]:.1f}"'


def shorten_label(label: str, characters: int, *, keep_end: bool = False) -> str:
    """Cut a long label at its end, or at its beginning if the ends distinguish labels (`keep_end`).

    >>> shorten_label("learning_rate", 6), shorten_label("model-q8_0", 6, keep_end=True)
    ('learn…', '…-q8_0')
    """
    if len(label) <= characters:
        return label
    return f"…{label[1 - characters :]}" if keep_end else f"{label[: max(1, characters - 1)]}…"
