"""The report as a few lines of plain text."""

from pathlib import Path

from bench.report.tables import ReportTable, difference_table, quality_table, speed_table, split_table
from bench.results import Report
from gladstone.report.tables import text_columns
from gladstone.report.terminal import one_line


def render_summary(report: Report, folder: Path) -> str:
    """The results as compact tables, the warnings, and the paths of the full report."""
    parts = [_render(quality_table(report))]
    if len(report.models) > 1:
        parts.append(_render(difference_table(report)))
    if report.answered:
        parts.append(_render(split_table(report)))
    if report.models[0].speed:
        parts.append(_render(speed_table(report)))
    parts += ["\n".join(f"Rows: {remark}" for remark in report.row_notes)] if report.row_notes else []
    parts += [f"Warning: {warning}" for warning in report.warnings]
    parts += report.headline
    paths = "\n".join(f"  {folder / name}" for name in ("report.html", "report.md", "report.json"))
    return "\n\n".join([*parts, f"Report:\n{paths}"])


def _render(table: ReportTable) -> str:
    rows = [[table.title, *table.headers[1:]]]
    rows += [[title, *(cell.text for cell in cells)] for title, cells in table.rows]
    return "\n".join(text_columns([[*map(one_line, row)] for row in rows]))
