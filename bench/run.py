"""`bench run`: from model files and rows to a report in a folder."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import BenchConfig
from bench.measure.child import run_quality, run_speed
from bench.measure.items import read_items
from bench.measure.measure import QualityJob, SpeedJob
from bench.measure.models import model_warnings, read_models
from bench.measure.prompts import PromptSettings, prompt_settings
from bench.measure.row_selection import SelectedRows, select_rows
from bench.measure.tokenizer_differences import find_token_mismatches, find_tokenizer_differences
from bench.metrics.answer_form import Form, read_form
from bench.metrics.evaluate_metrics import load_metrics
from bench.metrics.metrics import Metric
from bench.report.html import render_page
from bench.report.json_report import report_json
from bench.report.markdown import render_markdown
from bench.report.summary import Measurements, summarise
from bench.results import Item, Measured, ModelFile, Report, SpeedRun
from gladstone.artifacts import (
    MANIFEST_NAME,
    Manifest,
    check_writable,
    is_finished,
    record_file,
    remove_partials,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
)
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError
from gladstone.machine.host import core_count, cpu_name
from gladstone.machine.packages import installed_versions
from gladstone.strict_json import json_text

PACKAGES = ("llama-cpp-python", "numpy", "rouge-score", "sacrebleu", "evaluate")
REPORT_FILES = ("report.json", "report.md", "report.html")


def run_bench(config: BenchConfig, progress: Progress) -> Report:
    """Measure the models and write `report.json`, `report.md`, `report.html` and the manifest into `config.out`.

    The input is checked as a whole before the first model is loaded. Raises GladstoneError.
    """
    check_output_folder(config.out)
    read = read_items(config)
    frame = prompt_settings(config, only_texts=not read.asked)
    models = read_models(config.models, frame, progress)
    form = read_form(config.regex, config.json_schema)
    if not read.asked and (form or config.metrics):
        raise ConfigError(
            f"--metric, --regex and --json-schema score answers, but no row of {config.data} asks a question."
        )
    metrics = _load_metrics(config, form, progress) if read.asked else {}
    selected = select_rows(models, read, (config, frame), progress)
    items, asked = selected.items.items, selected.items.asked
    if asked and min(config.answers, asked) < 2:
        raise ConfigError(
            f"--answers {config.answers} with {asked} rows that ask a question: expected at least 2 answers, because "
            "one gives no interval."
        )
    differences = find_tokenizer_differences(models)
    mismatches = find_token_mismatches(models, selected.tokens, differences)
    unexplained = {label: how for label, how in differences.items() if label not in mismatches}
    warnings = [*model_warnings(models, unexplained), *_form_warnings(form, items[: min(config.answers, asked)])]
    measured = _measure(models, items, (config, selected.frame), progress)
    with step(progress, "score the answers and resample the items"):
        inputs = Measurements(models, items, measured, metrics, config, mismatches)
        report = replace(
            summarise(inputs, warnings),
            settings=_settings(config, selected),
            provenance=_provenance(config),
            notes=(*selected.items.notes, *selected.notes),
            left_out=selected.items.left_out,
        )
    write_report(config.out, report)
    return report


def _load_metrics(config: BenchConfig, form: Form | None, progress: Progress) -> dict[str, Metric]:
    with step(progress, "load the metrics"):
        return (form.metrics() if form else {}) | load_metrics(config.metrics)


def _form_warnings(form: Form | None, items: Sequence[Item]) -> list[str]:
    """A warning if references do not have the form: the pattern is more likely wrong than the references."""
    outside = form.outside([item.reference_text.strip() for item in items]) if form else []
    if form is None or not outside:
        return []
    first = items[outside[0]].source
    return [
        f"{len(outside)} of {len(items)} reference answers are not in the form themselves (first: {first}). Check the "
        f"{form.described}."
    ]


def check_output_folder(folder: Path) -> None:
    """Raises ArtifactError if the folder holds a finished report or is not writable."""
    if is_finished(folder):
        raise ArtifactError(
            f"{folder}: already holds finished work ({MANIFEST_NAME}). Choose another folder with --out, or remove it."
        )
    check_writable(folder)
    remove_partials(folder)


def write_report(folder: Path, report: Report) -> None:
    """Write the report as JSON, Markdown and HTML, and the manifest last."""
    write_json(folder / "report.json", report_json(report))
    write_text(folder / "report.md", render_markdown(report))
    write_text(folder / "report.html", render_page(report))
    templates = {row.model.template_sha256 for row in report.models}
    manifest = Manifest(
        stage="bench",
        files=tuple(record_file(folder, folder / name) for name in REPORT_FILES),
        parents={row.model.label: row.model.sha256 for row in report.models},
        config=report.settings,
        versions=report.provenance["versions"],
        template_sha256=templates.pop() if len(templates) == 1 else None,
        seed=report.settings["seed"],
        facts={"headline": list(report.headline), "data_sha256": report.provenance["data_sha256"]},
    )
    write_manifest(folder, manifest)


def _measure(
    models: Sequence[ModelFile], items: tuple[Item, ...], how: tuple[BenchConfig, PromptSettings], progress: Progress
) -> tuple[Measured, ...]:
    measured = [_measure_quality(model, items, how, progress) for model in models]
    rounds = _measure_speed(models, items, how, progress)
    return tuple(replace(part, speed=tuple(runs)) for part, runs in zip(measured, rounds, strict=True))


def _measure_quality(
    model: ModelFile, items: tuple[Item, ...], how: tuple[BenchConfig, PromptSettings], progress: Progress
) -> Measured:
    config, frame = how
    answers = min(config.answers, sum(not item.is_text for item in items))
    job = QualityJob(model.path, items, answers, config.max_tokens, config.threads, frame)
    total = len(items) + answers

    def tell(count: int) -> None:
        done = f"row {count} of {len(items)}" if count <= len(items) else f"answer {count - len(items)} of {answers}"
        progress.update(*((count / total, done) if count < total else (None, "")))

    with step(progress, f"{model.label}: perplexity and answers"):
        return run_quality(job, model.label, tell)


def _measure_speed(
    models: Sequence[ModelFile], items: tuple[Item, ...], how: tuple[BenchConfig, PromptSettings], progress: Progress
) -> list[list[SpeedRun]]:
    """Time every model once per round, so that other work on the machine affects all of them alike."""
    config, frame = how
    runs: list[list[SpeedRun]] = [[] for _ in models]
    if not config.speed_repeats:
        return runs
    with step(progress, f"speed, {config.speed_repeats} rounds"):
        for number in range(config.speed_repeats):
            for place, model in enumerate(models):
                done = number * len(models) + place
                progress.update(done / (config.speed_repeats * len(models)), f"round {number + 1}, {model.label}")
                job = SpeedJob(model.path, items, config.prefill_tokens, config.decode_tokens, config.threads, frame)
                runs[place].append(run_speed(job, model.label))
        progress.update(None)
    return runs


def _asked(frame: PromptSettings) -> str:
    """How the models were prompted, in words."""
    if frame.raw:
        return "as plain text, without a chat template: the answer on the line after the question"
    template = f"through the chat template {frame.chat_template.name}" if frame.chat_template else ""
    given = ", ".join(f"{name}={json_text(value)}" for name, value in frame.template_arguments.items())
    thought = ", without thinking" if frame.no_think else ""
    return (template or "through the chat template of each file") + (f", with {given}" if given else "") + thought


def _settings(config: BenchConfig, selected: SelectedRows) -> dict[str, Any]:
    rows = len(selected.items.items)
    return {
        "data": str(config.data),
        "format": selected.items.layout,
        "rows": rows,
        "rows_in_file": selected.items.in_file,
        "answers": min(config.answers, selected.items.asked),
        "asked": _asked(selected.frame),
        "chat_template": config.chat_template,
        "template_arguments": selected.frame.template_arguments,
        "raw": selected.frame.raw,
        "max_tokens": config.max_tokens,
        "context_tokens": selected.frame.context_tokens,
        "reasoning_tokens": config.reasoning_tokens,
        "no_think": config.no_think,
        "skip_bad": config.skip_bad,
        "threads": config.threads or core_count(),
        "seed": config.seed,
        "metrics": list(config.metrics),
        "regex": config.regex,
        "json_schema": json.loads(config.json_schema.read_text(encoding="utf-8")) if config.json_schema else None,
        "speed_repeats": config.speed_repeats,
        "prefill_tokens": config.prefill_tokens,
        "decode_tokens": config.decode_tokens,
    }


def _provenance(config: BenchConfig) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": sha256_file(config.data),
        "processor": cpu_name(),
        "cores": core_count(),
        "versions": installed_versions(*PACKAGES),
    }
