"""The table of trials as Markdown, CSV and plain text; `page` renders the HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune.sweep.results import Row, Table
from finetune.sweep.search_space import setting_text
from finetune.sweep.storage import BEST_NAME
from gladstone.commands.shell import command_line
from gladstone.machine.host import readable_bytes
from gladstone.report.durations import duration
from gladstone.report.tables import Markdown, Value, csv_table, markdown_line, markdown_table, text_columns
from gladstone.report.terminal import one_line

SCORE_TITLES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "perplexity": "perplexity",
}
LOSSES = "Losses are in nats per target token; the training loss is the mean of the last tenth of the steps."


@dataclass(frozen=True)
class Column:
    """A column: its title for people, its name with unit for programs, its value, and how the value is shown."""

    title: str
    name: str
    value: Callable[[Row], Any]
    show: Callable[[Any], str] = setting_text
    number: bool = True


def columns(table: Table) -> list[Column]:
    """The columns: trial, settings, losses, scores if there are any, cost (of a GPU where one was used), state."""
    found = [Column("trial", "trial", lambda row: row.number)]
    found += [
        Column(title, name, partial(_setting, name), number=False)
        for name, title in zip(table.fields, short_names(table.fields), strict=True)
    ]
    found += [
        Column("training loss", "training_loss_nats_per_token", lambda row: row.metrics.training_loss, _loss),
        Column(
            "validation loss", "best_validation_loss_nats_per_token", lambda row: row.metrics.validation_loss, _loss
        ),
        Column("held-out loss", "held_out_loss_nats_per_token", lambda row: row.metrics.held_out_loss, _loss),
    ]
    found += [Column(SCORE_TITLES.get(name, name), name, partial(_score, name), _loss) for name in table.score_names]
    on_gpu = any(row.metrics.peak_gpu_bytes is not None for row in table.rows)
    gpu = Column("peak GPU memory", "peak_gpu_bytes", lambda row: row.metrics.peak_gpu_bytes, readable_bytes)
    return [
        *found,
        Column("time", "training_s", lambda row: row.metrics.train_s, duration),
        Column("peak memory", "peak_memory_bytes", lambda row: row.metrics.peak_memory_bytes, readable_bytes),
        *([gpu] if on_gpu else []),
        Column("tokens/s", "tokens_per_s", lambda row: row.metrics.tokens_per_s, lambda value: f"{value:,.0f}"),
        Column("state", "state", _state, number=False),
    ]


def short_names(fields: Sequence[str]) -> list[str]:
    """The last part of each field name if it is unique, else the whole name.

    >>> short_names(["training.learning_rate", "training.seed", "data.seed"])
    ['learning_rate', 'training.seed', 'data.seed']
    """
    ends = [name.rpartition(".")[2] for name in fields]
    return [end if ends.count(end) == 1 else name for name, end in zip(fields, ends, strict=True)]


def cells(table: Table, row: Row) -> list[str]:
    """The cells of a row as text; '—' if a value was not measured."""
    found = ((column, column.value(row)) for column in columns(table))
    return ["—" if value is None and column.number else column.show(value) for column, value in found]


def reasons(table: Table) -> list[str]:
    """A line for each trial that did not finish, and for each serious warning of one that did."""
    warned = [f"WARNING of trial {row.number}: {text}." for row in table.rows for text in row.metrics.warnings]
    return [f"Trial {row.number} ({row.state}): {row.reason}" for row in table.rows if row.reason] + warned


def render_markdown(table: Table) -> str:
    """The table as Markdown, with the best trial in bold."""
    shown = columns(table)
    rows = [
        [Markdown(f"**{markdown_line(cell)}**") if row is table.best else cell for cell in cells(table, row)]
        for row in table.rows
    ]
    right = [place for place, column in enumerate(shown) if column.number]
    text = markdown_table([column.title for column in shown], rows, right=right)
    sentences = [verdict(table), LOSSES, *table.notes, *reasons(table)]
    lines = [f"# {markdown_line(heading(table))}", "", text, ""]
    return "\n".join([*lines, *(f"{markdown_line(sentence)}  " for sentence in sentences if sentence)]) + "\n"


def render_csv(table: Table) -> str:
    """The table as CSV: plain numbers, with units in the column names."""
    shown = columns(table)
    lines = [
        [
            *(_csv_value(column.value(row)) for column in shown),
            "yes" if row is table.best else "",
            row.reason,
            row.folder.as_posix(),
        ]
        for row in table.rows
    ]
    return csv_table([*(column.name for column in shown), "best", "reason", "run_folder"], lines)


def render_text(table: Table) -> str:
    """The table as aligned columns for a terminal; * marks the best trial."""
    shown = columns(table)
    lines = [[column.title for column in shown], *([*map(one_line, cells(table, row))] for row in table.rows)]
    marks = [" ", *("*" if row is table.best else " " for row in table.rows)]
    aligned = text_columns(lines, right=[place for place, column in enumerate(shown) if column.number])
    return "\n".join(f"{mark} {line}" for mark, line in zip(marks, aligned, strict=True))


def ending(table: Table, folder: Path) -> str:
    """The last output of the command: the table, notes, and the next command."""
    lines = [render_text(table), "", verdict(table), *table.notes, *map(one_line, reasons(table))]
    lines.append(f"Table: {folder / 'table.md'}, also .csv and .html")
    if table.best is not None:
        lines.append(f"Best recipe: {folder / BEST_NAME}")
        if table.best.metrics.warnings:
            lines.append(f"WARNING: the best trial has a serious warning, too: {table.best.metrics.warnings[0]}.")
        else:
            lines.append(f"Next: {command_line('gladstone', 'export', 'gguf', folder / table.best.folder)}")
    return "\n".join(lines)


def heading(table: Table) -> str:
    """The title of the table."""
    return f"{table.name}: {len(table.rows)} of {table.total} trials"


def verdict(table: Table) -> str:
    """A sentence that names the best trial."""
    best = table.best
    if best is None or best.metrics.validation_loss is None:
        return "No trial has finished."
    return f"Best: trial {best.number}, validation loss {_loss(best.metrics.validation_loss)}."


def _state(row: Row) -> str:
    return f"{row.state}, WARNING" if row.metrics.warnings else row.state


def _setting(name: str, row: Row) -> Any:
    return row.settings[name]


def _score(name: str, row: Row) -> float | None:
    return row.metrics.scores.get(name)


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _csv_value(value: Any) -> Value:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return setting_text(value)
