"""A comparison as text: for a terminal of any width, as Markdown and as CSV."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.reports.compare.table import Comparison, Row, Value
from gladstone.report.csv_cells import cell_text
from gladstone.report.terminal import one_line

if TYPE_CHECKING:
    from rich.table import Table

WIDEST = 100_000  # of a table in a file
LONGEST_CELL = 40
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|&~!$])")


def render_terminal(comparison: Comparison, width: int | None, *, colours: bool) -> str:
    """The table if it fits into `width` columns (None: any), else a block for each run; then what to mind."""
    from rich.console import Console
    from rich.measure import Measurement

    out = io.StringIO()
    console = Console(file=out, width=width or WIDEST, force_terminal=colours, no_color=not colours, highlight=False)
    table = _table(comparison)
    if Measurement.get(console, console.options.update(width=WIDEST), table).maximum <= console.width:
        console.print(table)
    else:
        console.print(_blocks(comparison, console.width), markup=False, soft_wrap=True)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    mind = [f"Mind: {one_line(warning)}" for warning in comparison.warnings]
    wrapped = [textwrap.fill(each, min(width, 120)) if width else each for each in mind]
    return "\n".join([text, *(["", *wrapped] if wrapped else [])]) + "\n"


def _table(comparison: Comparison) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True)
    for label in comparison.labels:
        table.add_column(Text(one_line(label, LONGEST_CELL)), no_wrap=True, header_style="bold")
    for rows, style in ((comparison.settings, "cyan"), (comparison.findings, "")):
        for row in rows:
            cells = [one_line(text, LONGEST_CELL) for text in row.texts]
            table.add_row(Text(one_line(row.name, LONGEST_CELL), style), *(Text(cell) for cell in cells))
    return table


def _blocks(comparison: Comparison, width: int) -> str:
    """Run by run, for a terminal that is too narrow for columns."""
    blocks = []
    for place, label in enumerate(comparison.labels):
        lines = [one_line(label)]
        for row in (*comparison.settings, *comparison.findings):
            lines += textwrap.wrap(
                f"{one_line(row.name)}: {one_line(row.texts[place])}",
                max(width, 12),
                initial_indent="  ",
                subsequent_indent="    ",
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def render_markdown(comparison: Comparison) -> str:
    """The tables, and what to mind."""
    parts = ["# Runs side by side"]
    for title, rows in (("Settings that differ", comparison.settings), ("What came of them", comparison.findings)):
        parts += [f"## {title}", _markdown_table(comparison.labels, rows) if rows else "None."]
    if comparison.warnings:
        parts += ["## Mind", "\n".join(f"- {_escaped(warning, code=True)}" for warning in comparison.warnings)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(labels: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [["", *map(_escaped, labels)], ["---"] * (len(labels) + 1)]
    lines += [[_escaped(row.name), *map(_escaped, row.texts)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str, *, code: bool = False) -> str:
    """Text that Markdown shows as it is; `code` keeps what our own sentences put between backticks."""
    escaped = _MARKDOWN.sub(r"\\\1", one_line(text))
    return escaped.replace("\\`", "`") if code else escaped


def render_csv(comparison: Comparison) -> str:
    """A line for each run, a column for each setting that differs and each finding; numbers in full, with units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = (*comparison.settings, *comparison.findings)
    writer.writerow(["run", "folder", *(_cell(f"{row.name} ({row.unit})" if row.unit else row.name) for row in rows)])
    for place, run in enumerate(comparison.runs):
        writer.writerow([_cell(run.label), _cell(str(run.folder)), *(_cell(row.values[place]) for row in rows)])
    return out.getvalue()


def _cell(value: Value) -> str | float | int | None:
    if isinstance(value, str):
        return cell_text(one_line(value))
    return value
