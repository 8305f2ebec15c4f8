"""The report as JSON: all results, intervals and per-item values."""

import dataclasses
import json
from typing import Any

from bench.metrics.tokenisers import splits
from bench.results import ModelReport, Report
from gladstone.strict_json import json_text

SCHEMA = 1


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; equal reports give equal values. A number that is not finite is a text."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "headline": report.headline,
        "warnings": report.warnings,
        "settings": report.settings,
        "provenance": report.provenance,
        "notes": report.notes,
        "left_out": [dataclasses.asdict(each) for each in report.left_out],
        "metrics": [dataclasses.asdict(metric) for metric in report.metrics],
        "tokenisers": [dataclasses.asdict(each) for each in splits(report.references)],
        "models": [_model(row) for row in report.models],
        "items": [_item(report, number) for number in range(len(report.items))],
    }
    plain: dict[str, Any] = json.loads(json_text(data))
    return plain


def _model(row: ModelReport) -> dict[str, Any]:
    speed_runs = [dataclasses.asdict(run) for run in row.measured.speed]
    return {
        **dataclasses.asdict(row.model),
        "path": str(row.model.path),
        "results": _plain(row.results),
        "differences": {
            name: {**dataclasses.asdict(difference.result), "verdict": difference.verdict}
            for name, difference in row.differences.items()
        },
        "speed": _plain(row.speed),
        "speed_ratios": _plain(row.speed_ratios),
        "peak_memory_bytes": row.peak_memory_bytes,
        "quality_peak_memory_bytes": row.measured.quality_peak_memory_bytes,
        "endless_answers": row.truncated_answers,
        "only_thoughts": row.reasoning_only_answers,
        "unseen": row.unseen,
        "speed_runs": speed_runs,
    }


def _item(report: Report, number: int) -> dict[str, Any]:
    item = report.items[number]
    return {
        "source": item.source,
        "prompt": [dataclasses.asdict(message) for message in item.prompt],
        "reference": item.reference_text,
        "reference_reasoning": item.reference.reasoning,
        "models": {row.model.label: _item_values(row, number) for row in report.models},
    }


def _item_values(row: ModelReport, number: int) -> dict[str, Any]:
    values: dict[str, Any] = {"loss": dataclasses.asdict(row.measured.losses[number])}
    if number < len(row.measured.answers):
        values["answer"] = dataclasses.asdict(row.measured.answers[number])
        values["scores"] = {name: scores[number].value for name, scores in row.scores.items()}
    return values


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(figure) for name, figure in figures.items()}
