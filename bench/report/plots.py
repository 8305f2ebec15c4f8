"""The report's charts."""

from bench.report.number_format import format_number
from bench.results import Report, Result, Spread
from gladstone.report.svg_charts import (
    BASELINE,
    Area,
    Mark,
    Paint,
    Strip,
    dot,
    grid,
    linear_ticks,
    shorten_label,
    strip_chart,
    svg,
    text,
    whisker,
)

WIDTH, STRIP_GAP = 720, 10
SIZE_AREA = Area(WIDTH, 260, 64, WIDTH - 190, 24, 226)  # room on the right for the models' names
LABEL_CHARACTERS = 30
COLOURS = 6  # the page defines --model-0 … --model-5


def perplexity_plot(report: Report) -> str:
    """Perplexity of each model with its interval."""
    strips = [
        Strip(_label(row.model.label), [_mark(row.results["perplexity"], number)])
        for number, row in enumerate(report.models)
    ]
    return _strips("Perplexity with 95 % interval (lower is better)", strips, from_zero=False)


def scores_plot(report: Report) -> str:
    """Every metric that lies in [0, 1], the models side by side."""
    results = [row.results for row in report.models]
    shares = [info for info in report.metrics if info.higher_is_better and any(info.name in row for row in results)]
    strips = [
        Strip(
            _label(info.title),
            [_mark(row[info.name], number) for number, row in enumerate(results) if info.name in row],
        )
        for info in shares
    ]
    return _strips("Score with 95 % interval (higher is better)", strips, from_zero=True)


def decode_plot(report: Report) -> str:
    """Decode speed: every round as a dot, the median as a bar over the spread."""
    strips = []
    for number, row in enumerate(report.models):
        rounds = tuple(run.decode_tokens_per_s for run in row.measured.speed)
        strips.append(Strip(_label(row.model.label), [_mark(row.speed["decode_tokens_per_s"], number, rounds)]))
    return _strips("Decode, tokens/s: each round, median and spread", strips, from_zero=True)


def size_plot(report: Report) -> str:
    """File size against perplexity: what a quantisation saves and what it costs."""
    sizes = [row.model.size_bytes / 1e6 for row in report.models]
    results = [row.results["perplexity"] for row in report.models]
    lows, highs = [result.low for result in results], [result.high for result in results]
    across = SIZE_AREA.across(linear_ticks(0, max(sizes) * 1.1), "file size, MB")
    up = SIZE_AREA.up(linear_ticks(min(lows), max(highs)), "perplexity")
    parts = grid(SIZE_AREA, across, up)
    for number, (row, size, result) in enumerate(zip(report.models, sizes, results, strict=True)):
        x, y, paint = across.pixel(size), up.pixel(result.mean), _paint(number)
        parts += [
            whisker((x, up.pixel(result.low)), (x, up.pixel(result.high)), paint),
            dot((x, y), paint),
            text((x + 10, y + BASELINE), _label(row.model.label), style_class="label"),
        ]
    return svg("File size and perplexity with 95 % interval", SIZE_AREA.width, SIZE_AREA.height, parts)


def _strips(title: str, strips: list[Strip], *, from_zero: bool) -> str:
    ends = [end for strip in strips for mark in strip.marks for end in mark.whisker or ()]
    ticks = linear_ticks(0 if from_zero else min(ends), max(ends))
    return strip_chart(title, strips, ticks, gap=STRIP_GAP, width=WIDTH)


def _mark(value: Result | Spread, number: int, dots: tuple[float, ...] = ()) -> Mark:
    middle = value.mean if isinstance(value, Result) else value.median
    return Mark(middle, format_number(middle), _paint(number), (value.low, value.high), dots)


def _paint(number: int) -> Paint:
    return Paint(colour=f"var(--model-{number % COLOURS})")


def _label(name: str) -> str:
    return shorten_label(name, LABEL_CHARACTERS, keep_end=True)
