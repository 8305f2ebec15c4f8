"""A comparison of runs as terminal text, Markdown and CSV."""

import textwrap
from collections.abc import Sequence
from typing import Any

from finetune.reports.compare.table import Comparison, Row
from gladstone.report.tables import csv_table, escape_markdown, markdown_table, text_blocks, text_columns, text_width
from gladstone.report.terminal import one_line

LONGEST_CELL = 40


def render_terminal(comparison: Comparison, width: int | None, *, colours: bool) -> str:
    """A table if it fits into `width` columns (None: unlimited), else a block per run; then the notes."""
    lines = _columns(comparison, colours=colours)
    if width is not None and max(map(text_width, lines)) > width:
        lines = _blocks(comparison, width).splitlines()
    notes = [f"Note: {one_line(warning)}" for warning in comparison.warnings]
    wrapped = [textwrap.fill(sentence, min(width, 120)) if width else sentence for sentence in notes]
    return "\n".join([*lines, *(["", *wrapped] if wrapped else [])]) + "\n"


def _columns(comparison: Comparison, *, colours: bool) -> list[str]:
    import click

    def styled(text: str, **style: Any) -> str:
        shown = one_line(text, LONGEST_CELL)
        return click.style(shown, **style) if colours and shown else shown

    rows = [["", *(styled(label, bold=True) for label in comparison.labels)]]
    for found, colour in ((comparison.settings, "cyan"), (comparison.results, None)):
        rows += [
            [styled(row.name, fg=colour) if colour else styled(row.name), *map(styled, row.texts)] for row in found
        ]
    return text_columns(rows)


def _blocks(comparison: Comparison, width: int) -> str:
    rows = [(one_line(row.name), [*map(one_line, row.texts)]) for row in (*comparison.settings, *comparison.results)]
    return text_blocks([*map(one_line, comparison.labels)], rows, width)


def render_markdown(comparison: Comparison) -> str:
    """The tables and the notes as Markdown."""
    parts = ["# Comparison of runs"]
    for title, rows in (("Settings that differ", comparison.settings), ("Results", comparison.results)):
        parts += [f"## {title}", _markdown_table(comparison.labels, rows) if rows else "None."]
    if comparison.warnings:
        parts += ["## Notes", "\n".join(f"- {_sentence(warning)}" for warning in comparison.warnings)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(labels: Sequence[str], rows: Sequence[Row]) -> str:
    return markdown_table(["", *labels], [[row.name, *row.texts] for row in rows])


def _sentence(text: str) -> str:
    """A sentence as Markdown; text between backticks stays code."""
    return escape_markdown(one_line(text)).replace("\\`", "`")


def render_csv(comparison: Comparison) -> str:
    """A line per run, with a column per differing setting and per result; unrounded numbers, units in the headers."""
    rows = (*comparison.settings, *comparison.results)
    headers = ["run", "folder", *(f"{row.name} ({row.unit})" if row.unit else row.name for row in rows)]
    lines = [
        [run.label, str(run.folder), *(row.values[number] for row in rows)]
        for number, run in enumerate(comparison.runs)
    ]
    return csv_table(headers, lines)
