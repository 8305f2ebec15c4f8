"""The report's tables as cells, the same for the page, the Markdown file and the terminal."""

import dataclasses
from dataclasses import dataclass

from bench.metrics.bootstrap import MIN_JUDGED
from bench.metrics.form import FORM
from bench.metrics.tokenisers import splits
from bench.report.number_format import figure, interval, signed, signed_interval, span
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
    """A figure, its uncertainty in small print, and a verdict where there is one."""

    value: str
    detail: str = ""
    verdict: str = ""

    @property
    def text(self) -> str:
        """All of it on one line."""
        return " ".join(part for part in (self.value, self.detail, self.verdict) if part)


@dataclass(frozen=True)
class TextTable:
    """Rows of cells under headers; the first header names the row titles."""

    title: str
    note: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def all_tables(report: Report) -> list[TextTable]:
    """The tables that this report has something for, in reading order."""
    tables = [files_table(report), quality_table(report)]
    if report.answered:
        tables.append(split_table(report))
    if len(report.models) > 1:
        tables.append(difference_table(report))
    if report.models[0].speed:
        tables.append(speed_table(report))
    return tables


def files_table(report: Report) -> TextTable:
    """What was measured."""
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
    note = (
        "Base against tuned is fair only between files made the same way: export both through the same steps and types."
    )
    headers = ("model", "size", "quantisation, tensors", "architecture, parameters")
    return TextTable("Models", note, headers, rows)


def quality_table(report: Report) -> TextTable:
    """Each metric of each model with its interval, and the answers that never ended."""
    rows = [(info.title, tuple(_result_cell(row, info.name) for row in report.models)) for info in report.metrics]
    answers = report.answered
    if answers:
        rows.append(("answers cut off", tuple(Cell(f"{row.endless_answers} of {answers}") for row in report.models)))
    if any(row.only_thoughts for row in report.models):
        rows.append(("of them only a thought", tuple(Cell(f"{row.only_thoughts}") for row in report.models)))
    compared = (
        f"; the other metrics compare {answers} greedy answers with their references (higher is better, at most 1)"
    )
    note = (
        f"Perplexity of {report.scored_words} (lower is better){compared if answers else ''}. In brackets the 95 % "
        "interval."
        f"{_form_note(report)}{_unseen_note(report)}"
    )
    return TextTable("Quality", note, ("", *_labels(report)), tuple(rows))


def _form_note(report: Report) -> str:
    if not any(info.name == FORM for info in report.metrics):
        return ""
    wanted = "match --regex" if report.settings["regex"] is not None else "fit --json-schema"
    return (
        f" In the form are answers that ended and {wanted}, wholly; 'as the reference' are those in the form whose "
        "field says what the reference's says. Intervals of these shares are Wilson's."
    )


def _unseen_note(report: Report) -> str:
    titles = {info.name: info.title for info in report.metrics}
    reasons: dict[str, list[str]] = {}
    for row in report.models:
        for name, reason in row.unseen.items():
            if titles[name] not in reasons.setdefault(reason, []):
                reasons[reason].append(titles[name])
    return "".join(f" {NO_FIGURE} for {', '.join(names)}: {reason}." for reason, names in reasons.items())


def split_table(report: Report) -> TextTable:
    """How references and answers were split into what the metrics compare."""
    rows = tuple(
        (each.title, (Cell(f"{each.rows:,}"), *map(Cell, dataclasses.astuple(each.tokenisers))))
        for each in splits(report.references)
    )
    note = "The writing of a reference decides how it and its answers are split into tokens. BLEU's are sacrebleu's."
    headers = ("references in", "rows", "ROUGE", "BLEU", "token F1, exact match")
    return TextTable("Tokenisers", note, headers, rows)


def difference_table(report: Report) -> TextTable:
    """Each later model minus the first, with the verdict."""
    first, others = report.models[0], report.models[1:]
    rows = tuple((info.title, tuple(_difference_cell(row, info.name) for row in others)) for info in report.metrics)
    note = (
        f"Each model minus {first.model.label} over the same rows (95 % interval by paired bootstrap, of shares by "
        "Newcombe's method). 'Not distinguishable' means that the interval contains 0: these rows cannot tell the two "
        f"apart. Of twenty true ties about one is called a difference. Below {MIN_JUDGED} answers nothing is judged."
    )
    return TextTable(f"Difference to {first.model.label}", note, ("", *_labels(report)[1:]), rows)


def speed_table(report: Report) -> TextTable:
    """Timings with their spread, relative to the first model, and peak memory."""
    rows = [
        (f"{title}, {unit}", tuple(_speed_cell(row, name) for row in report.models))
        for name, (title, unit) in SPEED_TITLES.items()
    ]
    rows.append(("peak memory", tuple(Cell(readable_bytes(row.peak_memory_bytes or 0)) for row in report.models)))
    first = report.models[0]
    run = first.measured.speed[0]
    note = (
        f"Median (least–greatest) of {len(first.measured.speed)} rounds; in each round every model ran once, in a "
        f"process of its own, threads: {report.settings['threads']}, after a warm-up. × is the median of the ratios "
        f"to {first.model.label} within a round. Load: file cache warm or not is unknown. First token: rendering, "
        f"tokenising and reading a typical question. Prefill: {run.prefill_tokens} tokens, decode: {run.decode_tokens} "
        "tokens, both without sampling. Peak memory: the whole process, mapped pages of the model file included."
    )
    return TextTable("Speed and memory", note, ("", *_labels(report)), tuple(rows))


def _tensor_types(model: ModelFile) -> str:
    # the type that a file is called by can be rare in it: rows that do not fit its blocks get another
    return ", ".join(f"{count} {name}" for name, count in model.tensor_types.items())


def _labels(report: Report) -> list[str]:
    return [row.model.label for row in report.models]


def _result_cell(row: ModelReport, name: str) -> Cell:
    result = row.results.get(name)
    return Cell(figure(result.mean), interval(result)) if result else Cell(NO_FIGURE)


def _difference_cell(row: ModelReport, name: str) -> Cell:
    difference = row.differences.get(name)
    if difference is None:
        return Cell(NO_FIGURE)
    return Cell(signed(difference.result.mean), signed_interval(difference.result), difference.verdict)


def _speed_cell(row: ModelReport, name: str) -> Cell:
    spread = row.speed[name]
    ratio = row.speed_ratios.get(name)
    return Cell(figure(spread.median), span(spread), f"{ratio.median:.2f} ×" if ratio else "")
