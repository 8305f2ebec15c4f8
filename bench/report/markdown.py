"""The report as Markdown, for a README or an issue."""

from bench.report.tables import ReportTable, all_tables
from bench.results import Report
from gladstone.chat.messages import NO_MEDICAL_ADVICE
from gladstone.report.tables import escape_markdown, markdown_table

SHOWN_ANSWERS = 6


def render_markdown(report: Report) -> str:
    """Headline, warnings, tables, some answers, and provenance."""
    parts = ["# Benchmark", *(escape_markdown(sentence) for sentence in report.headline)]
    if report.warnings:
        parts.append("\n".join(f"- **Warning:** {escape_markdown(warning)}" for warning in report.warnings))
    if report.row_notes:
        parts.append("\n".join(f"- **Rows:** {escape_markdown(remark)}" for remark in report.row_notes))
    for table in all_tables(report):
        parts += [f"## {escape_markdown(table.title)}", _table(table), escape_markdown(table.note)]
    if report.answered:
        parts += ["## Answers side by side", *(_answers(report, number) for number in range(_shown(report)))]
    parts += ["## Provenance", _provenance(report), NO_MEDICAL_ADVICE]
    return "\n\n".join(parts) + "\n"


def measured_rows(report: Report) -> str:
    """The rows that were measured, in words."""
    rows, in_file = report.settings["rows"], report.settings["rows_in_file"]
    return f"{rows:,} of {in_file:,} rows" if report.left_out else f"rows 1–{rows:,} of {in_file:,}"


def _table(table: ReportTable) -> str:
    return markdown_table(table.headers, [[title, *(cell.text for cell in cells)] for title, cells in table.rows])


def _shown(report: Report) -> int:
    return min(SHOWN_ANSWERS, report.answered)


def _answers(report: Report, number: int) -> str:
    item = report.items[number]
    texts = [("Question", item.question), ("Reference", item.reference_text)]
    texts += [(row.model.label, row.measured.answers[number].shown) for row in report.models]
    return "\n>\n".join(f"> **{escape_markdown(name)}:** {_quote(text)}" for name, text in texts)


def _quote(text: str) -> str:
    return "  \n> ".join(escape_markdown(line) for line in text.splitlines()) or "(empty)"


def _provenance(report: Report) -> str:
    facts, settings = report.provenance, report.settings
    lines = [
        f"- {facts['date']}, {facts['processor']}, {facts['cores']} cores, threads: {settings['threads']}",
        f"- {measured_rows(report)} of {settings['data']} "
        f"({settings['format']}, sha256 {facts['data_sha256'][:12]}…), seed {settings['seed']}",
        f"- prompts {settings['asked']}",
        "- " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
    lines += [f"- {row.model.label}: sha256 {row.model.sha256}" for row in report.models]
    lines += [
        f"- {row.model.label}: {row.measured.speed[0].placement}"
        for row in report.models
        if row.measured.speed and row.measured.speed[0].gpu_layers
    ]
    return "\n".join(escape_markdown(line) for line in lines)
