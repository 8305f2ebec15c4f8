"""The tables of the report as cells, shared by the HTML page, the Markdown file and the terminal."""

import dataclasses
from dataclasses import dataclass

from bench.metrics.answer_form import FORM
from bench.metrics.bootstrap import MIN_ANSWERS_FOR_VERDICT
from bench.metrics.tokenisers import splits
from bench.report.number_format import (
    format_interval,
    format_number,
    format_range,
    format_signed,
    format_signed_interval,
)
from bench.results import ModelFile, ModelReport, Report
from gladstone.machine.host import readable_bytes

NO_FIGURE = "–"
SPEED_TITLES = {
    "load_s": ("load", "s"),
    "first_token_s": ("first token", "s"),
    "prefill_tokens_per_s": ("prefill", "tokens/s"),
    "decode_tokens_per_s": ("decode", "tokens/s"),
}


@dataclass(frozen=True)
class Cell:
    """A value, its uncertainty in small print, and a verdict if there is one."""

    value: str
    detail: str = ""
    verdict: str = ""

    @property
    def text(self) -> str:
        """The whole cell on one line."""
        return " ".join(part for part in (self.value, self.detail, self.verdict) if part)


@dataclass(frozen=True)
class ReportTable:
    """Rows of cells under headers; the first header is that of the row titles."""

    title: str
    note: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def all_tables(report: Report) -> list[ReportTable]:
    """The tables of this report that have content, in reading order."""
    tables = [files_table(report), quality_table(report)]
    if report.answered:
        tables.append(split_table(report))
    if len(report.models) > 1:
        tables.append(difference_table(report))
    if report.models[0].speed:
        tables.append(speed_table(report))
    return tables


def files_table(report: Report) -> ReportTable:
    """The model files."""
    rows = tuple(
        (
            row.model.label,
            (
                Cell(readable_bytes(row.model.size_bytes)),
                Cell(row.model.quantisation, _tensor_types(row.model)),
                Cell(f"{row.model.architecture}, {row.model.parameters / 1e6:,.1f} M"),
            ),
        )
        for row in report.models
    )
    note = "Compare a base with a tuned model only if both were exported by the same steps with the same types."
    headers = ("model", "size", "quantisation, tensors", "architecture, parameters")
    return ReportTable("Models", note, headers, rows)


def quality_table(report: Report) -> ReportTable:
    """Each metric of each model with its interval, and the number of answers that were cut off."""
    rows = [(info.title, tuple(_result_cell(row, info.name) for row in report.models)) for info in report.metrics]
    answers = report.answered
    if answers:
        rows.append(("answers cut off", tuple(Cell(f"{row.truncated_answers} of {answers}") for row in report.models)))
    if any(row.reasoning_only_answers for row in report.models):
        rows.append(("of them reasoning only", tuple(Cell(f"{row.reasoning_only_answers}") for row in report.models)))
    compared = (
        f"; the other metrics compare {answers} greedy answers with their references (higher is better, at most 1)"
    )
    note = (
        f"Perplexity of {report.scored_description} (lower is better){compared if answers else ''}. "
        "The 95 % interval is in brackets."
        f"{_form_note(report)}{_unseen_note(report)}"
    )
    return ReportTable("Quality", note, ("", *_labels(report)), tuple(rows))


def _form_note(report: Report) -> str:
    if not any(info.name == FORM for info in report.metrics):
        return ""
    wanted = "match --regex" if report.settings["regex"] is not None else "fit --json-schema"
    return (
        f" 'In the form' counts answers that are complete and {wanted} as a whole; 'as the reference' counts those "
        "whose field equals that of the reference. The intervals of these proportions are Wilson's."
    )


def _unseen_note(report: Report) -> str:
    titles = {info.name: info.title for info in report.metrics}
    reasons: dict[str, list[str]] = {}
    for row in report.models:
        for name, reason in row.unseen.items():
            if titles[name] not in reasons.setdefault(reason, []):
                reasons[reason].append(titles[name])
    return "".join(f" {NO_FIGURE} for {', '.join(names)}: {reason}." for reason, names in reasons.items())


def split_table(report: Report) -> ReportTable:
    """How references and answers were tokenised for the metrics."""
    rows = tuple(
        (each.title, (Cell(f"{each.rows:,}"), *map(Cell, dataclasses.astuple(each.tokenisers))))
        for each in splits(report.references)
    )
    note = "The writing system of a reference decides how it and its answers are tokenised, for BLEU by sacrebleu."
    headers = ("references in", "rows", "ROUGE", "BLEU", "token F1, exact match")
    return ReportTable("Tokenisers", note, headers, rows)


def difference_table(report: Report) -> ReportTable:
    """Each later model minus the first, with the verdict."""
    first, others = report.models[0], report.models[1:]
    rows = tuple((info.title, tuple(_difference_cell(row, info.name) for row in others)) for info in report.metrics)
    note = (
        f"Each model minus {first.model.label} over the same rows (95 % interval by paired bootstrap; for "
        "proportions, by Newcombe's method). 'Not distinguishable' means that the interval contains 0, so these rows "
        "cannot tell the two apart. About one true tie in twenty is reported as a difference. "
        f"With fewer than {MIN_ANSWERS_FOR_VERDICT} answers there is no verdict."
    )
    return ReportTable(f"Difference to {first.model.label}", note, ("", *_labels(report)[1:]), rows)


def speed_table(report: Report) -> ReportTable:
    """Timings with their spread, relative to the first model, and peak memory."""
    rows = [
        (f"{title}, {unit}", tuple(_speed_cell(row, name) for row in report.models))
        for name, (title, unit) in SPEED_TITLES.items()
    ]
    rows.append(("peak memory", tuple(Cell(readable_bytes(row.peak_memory_bytes or 0)) for row in report.models)))
    if any(run.gpu_layers for row in report.models for run in row.measured.speed):
        rows.append(("on GPUs", tuple(map(_gpu_cell, report.models))))
    first = report.models[0]
    run = first.measured.speed[0]
    note = (
        f"Median (minimum–maximum) of {len(first.measured.speed)} rounds. In each round every model ran once, in "
        f"its own process, after a warm-up, with {report.settings['threads']} threads. × is the median ratio to "
        f"{first.model.label} within a round. Load: the file cache may be warm or cold. First token: rendering, "
        f"tokenising and prefill of a typical question. Prefill: {run.prefill_tokens} tokens, decode: "
        f"{run.decode_tokens} tokens, both without sampling. Peak memory: the whole process, including mapped pages of "
        "the model file."
    )
    return ReportTable("Speed and memory", note, ("", *_labels(report)), tuple(rows))


def _gpu_cell(row: ModelReport) -> Cell:
    """Layers on GPUs and the memory that they take there, of the round that took most."""
    most = max(row.measured.speed, key=lambda run: run.gpu_memory_bytes)
    return Cell(f"{most.gpu_layers} of {most.all_layers} layers", readable_bytes(most.gpu_memory_bytes))


def _tensor_types(model: ModelFile) -> str:
    # the type in a file's name can be rare in it: rows that do not fit its blocks get another type
    return ", ".join(f"{count} {name}" for name, count in model.tensor_types.items())


def _labels(report: Report) -> list[str]:
    return [row.model.label for row in report.models]


def _result_cell(row: ModelReport, name: str) -> Cell:
    result = row.results.get(name)
    return Cell(format_number(result.mean), format_interval(result)) if result else Cell(NO_FIGURE)


def _difference_cell(row: ModelReport, name: str) -> Cell:
    difference = row.differences.get(name)
    if difference is None:
        return Cell(NO_FIGURE)
    return Cell(format_signed(difference.result.mean), format_signed_interval(difference.result), difference.verdict)


def _speed_cell(row: ModelReport, name: str) -> Cell:
    spread = row.speed[name]
    ratio = row.speed_ratios.get(name)
    return Cell(format_number(spread.median), format_range(spread), f"{ratio.median:.2f} ×" if ratio else "")
