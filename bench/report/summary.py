"""From measurements to results with intervals, and to sentences that state them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.config import BenchConfig
from bench.metrics.answer_form import FORM
from bench.metrics.bootstrap import MIN_ANSWERS_FOR_VERDICT, Bootstrap, Table, judge, perplexity, spread
from bench.metrics.metrics import Metric, MetricScores
from bench.metrics.metrics import scored as of_scores
from bench.report.number_format import format_number, format_signed, format_signed_interval
from bench.results import (
    CUT,
    NOT_COMPARABLE,
    Answer,
    Difference,
    Item,
    Loss,
    Measured,
    MetricInfo,
    ModelFile,
    ModelReport,
    Report,
    Score,
    SpeedRun,
    Spread,
    scored_description,
)
from gladstone.machine.other_work import NOTICEABLE

NO_ANSWER = "the reasoning used up the tokens of every answer"
PERPLEXITY = MetricInfo("perplexity", "perplexity", higher_is_better=False)
ROUGH_BELOW = 20
NAMED = 4  # disturbed measurements
SPEED_FIGURES: dict[str, Callable[[SpeedRun], float]] = {
    "load_s": lambda run: run.load_s,
    "first_token_s": lambda run: run.first_token_s,
    "prefill_tokens_per_s": lambda run: run.prefill_tokens_per_s,
    "decode_tokens_per_s": lambda run: run.decode_tokens_per_s,
}


@dataclass(frozen=True)
class Measurements:
    """The measurements of all models, the items, and how answers are scored."""

    models: tuple[ModelFile, ...]
    items: tuple[Item, ...]
    measured: tuple[Measured, ...]
    metrics: dict[str, Metric]
    config: BenchConfig
    mismatches: Mapping[str, str] = field(
        default_factory=dict
    )  # why reference answers are other tokens to a model, by label


def summarise(inputs: Measurements, warnings: Sequence[str]) -> Report:
    """The report without settings and provenance, which the caller adds."""
    tables = [_scored(inputs, measured) for measured in inputs.measured]
    rows = tuple(_model_report(inputs, tables, place) for place in range(len(inputs.models)))
    infos = (PERPLEXITY, *(metric.info for metric in inputs.metrics.values()))
    return Report(
        headline=headline(rows, infos, scored_description(inputs.items)),
        warnings=(
            *warnings,
            *_metric_remarks(tables[0], infos),
            *_measurement_warnings(rows, inputs.mismatches),
            *_disturbances(rows),
            *_placements(rows),
        ),
        metrics=infos,
        models=rows,
        items=inputs.items,
        settings={},
    )


def headline(rows: Sequence[ModelReport], infos: Sequence[MetricInfo], scored: str) -> tuple[str, ...]:
    """One sentence for each model after the first; for a single model, its perplexity on what was `scored`."""
    first = rows[0]
    if len(rows) == 1:
        result = first.results[PERPLEXITY.name]
        ends = f"{format_number(result.low)} to {format_number(result.high)}"
        return (
            f"{first.model.label} has a perplexity of {format_number(result.mean)} (95 % interval {ends}) on {scored}. "
            "Name a second model to compare.",
        )
    return tuple(_finding(first, row, infos) for row in rows[1:])


def _scored(inputs: Measurements, measured: Measured) -> dict[str, MetricScores]:
    """Perplexity over all items and each metric over the answers, as tables for the bootstrap."""
    references = [item.reference_text.strip() for item in inputs.items[: len(measured.answers)]]
    scored = {name: _score(metric, measured.answers, references) for name, metric in inputs.metrics.items()}
    likelihood = tuple(float(np.exp(-loss.nats / loss.tokens)) for loss in measured.losses)
    return {PERPLEXITY.name: MetricScores(likelihood, _loss_table(measured.losses), perplexity), **scored}


def _score(metric: Metric, answers: Sequence[Answer], references: Sequence[str]) -> MetricScores:
    scored = metric.score([answer.text for answer in answers], references)
    if all(answer.is_reasoning_only for answer in answers):
        return replace(scored, unseen=NO_ANSWER)
    if not metric.whole_answers:
        return scored
    pairs = zip(answers, scored.scores, strict=True)
    return of_scores(
        [0.0 if answer.stop_reason in CUT else score for answer, score in pairs], is_proportion=scored.is_proportion
    )


def _loss_table(losses: Sequence[Loss]) -> Table:
    return np.array([[loss.nats, loss.tokens] for loss in losses], float)


def _model_report(inputs: Measurements, tables: Sequence[dict[str, MetricScores]], place: int) -> ModelReport:
    measured, first = inputs.measured[place], inputs.measured[0]
    own = tables[place]
    bootstrap = Bootstrap(seed=inputs.config.seed)
    speed = measured.speed
    return ModelReport(
        model=inputs.models[place],
        results={name: scored.estimate(bootstrap) for name, scored in own.items() if not scored.unseen},
        differences=_differences(inputs, tables, place, bootstrap) if place else {},
        scores={name: _scores(inputs.items, scored) for name, scored in own.items() if name != PERPLEXITY.name},
        speed=_spreads([{name: take(run) for name, take in SPEED_FIGURES.items()} for run in speed]),
        speed_ratios=_ratios(speed, first.speed) if place else {},
        peak_memory_bytes=max((run.peak_memory_bytes for run in speed), default=None),
        truncated_answers=sum(answer.stop_reason in CUT for answer in measured.answers),
        measured=measured,
        unseen={name: scored.unseen for name, scored in own.items() if scored.unseen},
    )


def _differences(
    inputs: Measurements, tables: Sequence[dict[str, MetricScores]], place: int, bootstrap: Bootstrap
) -> dict[str, Difference]:
    infos = {PERPLEXITY.name: PERPLEXITY} | {name: metric.info for name, metric in inputs.metrics.items()}
    differences = {}
    for name, info in infos.items():
        first, own = tables[0][name], tables[place][name]
        if not first.unseen and not own.unseen:
            differences[name] = judge(own.minus(first, bootstrap), info.higher_is_better)
    mismatches = inputs.models[place].label in inputs.mismatches
    if mismatches or not _same_tokens(inputs.measured[0], inputs.measured[place]):
        differences[PERPLEXITY.name] = Difference(differences[PERPLEXITY.name].result, NOT_COMPARABLE)
    return differences


def _same_tokens(first: Measured, other: Measured) -> bool:
    pairs = zip(first.losses, other.losses, strict=True)
    return all(one.tokens == two.tokens for one, two in pairs)


def _scores(items: Sequence[Item], scored: MetricScores) -> tuple[Score, ...]:
    return tuple(Score(item.source, value) for item, value in zip(items, scored.scores, strict=False))


def _spreads(runs: Sequence[dict[str, float]]) -> dict[str, Spread]:
    return {name: spread([run[name] for run in runs]) for name in SPEED_FIGURES} if runs else {}


def _ratios(speed: Sequence[SpeedRun], first: Sequence[SpeedRun]) -> dict[str, Spread]:
    """Each figure over the first model's of the same round: what slows a whole round cancels out."""
    pairs = zip(speed, first, strict=True)
    return _spreads([{name: take(own) / take(base) for name, take in SPEED_FIGURES.items()} for own, base in pairs])


def _finding(first: ModelReport, row: ModelReport, infos: Sequence[MetricInfo]) -> str:
    base, own, difference = (
        first.results[PERPLEXITY.name],
        row.results[PERPLEXITY.name],
        row.differences[PERPLEXITY.name],
    )
    gap = difference.result
    parts = [
        f"perplexity {format_number(base.mean)} → {format_number(own.mean)}, "
        f"{difference.verdict} (difference {format_signed(gap.mean)}, "
        f"95 % interval {format_signed(gap.low)} to {format_signed(gap.high)}, "
        f"{gap.n} rows)"
    ]
    if FORM in row.differences:
        parts.insert(0, _form_finding(first, row))
    verdicts: dict[str, list[str]] = {}
    for info in infos:
        if info.name in row.differences and info.name not in (PERPLEXITY.name, FORM):
            verdicts.setdefault(row.differences[info.name].verdict, []).append(info.title)
    parts += [f"{verdict}: {', '.join(titles)}" for verdict, titles in verdicts.items()]
    if "decode_tokens_per_s" in row.speed_ratios:
        ratio = row.speed_ratios["decode_tokens_per_s"]
        parts.append(
            f"decodes at {ratio.median:.2f} × the speed ({ratio.low:.2f}–{ratio.high:.2f} over {ratio.n} rounds)"
        )
    return f"{row.model.label} against {first.model.label}: {'; '.join(parts)}."


def _form_finding(first: ModelReport, row: ModelReport) -> str:
    difference = row.differences[FORM]
    before, after = first.results[FORM], row.results[FORM]
    return (
        f"answers in the form {round(before.mean * before.n)} → {round(after.mean * after.n)} of {after.n}, "
        f"{difference.verdict} (difference of the shares {format_signed(difference.result.mean)}, 95 % interval "
        f"{format_signed_interval(difference.result)})"
    )


def _disturbances(rows: Sequence[ModelReport]) -> list[str]:
    """A warning if other processes used the processors while speed was measured."""
    disturbed = [
        (run.other_processors, run.processors, f"{row.model.label} in round {number}")
        for row in rows
        for number, run in enumerate(row.measured.speed, 1)
        if run.other_processors >= NOTICEABLE
    ]
    if not disturbed:
        return []
    most, processors, _ = max(disturbed)
    total = sum(len(row.measured.speed) for row in rows)
    named = ", ".join(name for _, _, name in disturbed[:NAMED]) + (" and others" if len(disturbed) > NAMED else "")
    return [
        f"Other work ran on this machine during {len(disturbed)} of {total} speed measurements ({named}) and "
        f"used up to {most:.1f} of {processors} processors: these speeds are too low. Measure again on an idle machine."
    ]


def _placements(rows: Sequence[ModelReport]) -> list[str]:
    """A warning if not all speeds were measured with the same share of the layers on a GPU."""
    runs = {row.model.label: [(run.gpu_layers, run.all_layers) for run in row.measured.speed] for row in rows}
    if len({layers / (every or 1) for some in runs.values() for layers, every in some}) < 2:
        return []
    shown = ", ".join(
        f"{label}: {' or '.join(f'{layers} of {every}' for layers, every in sorted(set(some)))}"
        for label, some in runs.items()
    )
    return [
        f"Not all speeds were measured with the same share of the layers on a GPU ({shown}): its free memory decided, "
        "and part of the differences in speed comes from that. Free its memory, or measure models of the same size."
    ]


def _metric_remarks(scored: Mapping[str, MetricScores], infos: Sequence[MetricInfo]) -> list[str]:
    return [f"{info.title}: {scored[info.name].remark}." for info in infos if scored[info.name].remark]


def _thought_warning(row: ModelReport) -> str:
    count, answers = row.reasoning_only_answers, len(row.measured.answers)
    scored = "there is nothing to score" if count == answers else "they count as wrong"
    return (
        f"{count} of {answers} answers of {row.model.label} are empty, because the reasoning before them used up their "
        f"tokens: {scored}. --max-tokens allows more tokens, --reasoning-tokens limits the reasoning, and --no-think "
        "disables it."
    )


def _measurement_warnings(rows: Sequence[ModelReport], mismatches: Mapping[str, str]) -> list[str]:
    warnings = []
    answers = len(rows[0].measured.answers)
    if 0 < answers < ROUGH_BELOW:
        no_verdict = (
            f", and there is no verdict below {MIN_ANSWERS_FOR_VERDICT}" if answers < MIN_ANSWERS_FOR_VERDICT else ""
        )
        warnings.append(f"Only {answers} answers were scored: the intervals are rough below {ROUGH_BELOW}{no_verdict}.")
    warnings += map(_thought_warning, filter(lambda row: row.reasoning_only_answers, rows))
    for row in rows:
        if PERPLEXITY.name in row.differences and row.differences[PERPLEXITY.name].verdict == NOT_COMPARABLE:
            why = mismatches.get(row.model.label, "the numbers of tokens differ")
            warnings.append(
                f"{row.model.label} and {rows[0].model.label} split the reference answers into different tokens: "
                f"{why}. Perplexity is per token, so it cannot be compared between them."
            )
    return warnings
