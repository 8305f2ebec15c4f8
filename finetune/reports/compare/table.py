"""The results of runs as one table, their differing settings, and notes on unfair comparisons."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.monitor.smoothing import losses, running_mean
from finetune.reports.compare.runs import NO_SETTING, Run
from finetune.train.verdict import serious
from gladstone.machine.host import readable_bytes
from gladstone.report.durations import duration
from gladstone.strict_json import json_text

NOT_MEASURED = "–"
IGNORED_SECTIONS = ("name", "description", "hub")  # names in a recipe, which are not settings
Value = str | int | float | None


@dataclass(frozen=True)
class Row:
    """One row of the table: a name, the value of each run in `unit`, and the values as text."""

    name: str
    values: tuple[Value, ...]
    texts: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """The runs, the settings that differ, the results, and the notes."""

    runs: tuple[Run, ...]
    settings: tuple[Row, ...]
    results: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the runs."""
        return tuple(run.label for run in self.runs)


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs."""
    return Comparison(tuple(runs), tuple(differing_settings(runs)), tuple(_results(runs)), tuple(_warnings(runs)))


def differing_settings(runs: Sequence[Run]) -> list[Row]:
    """The settings that differ between runs."""
    names = dict.fromkeys(
        name for run in runs for name in run.settings if name.partition(".")[0] not in IGNORED_SECTIONS
    )
    rows = []
    for name in names:
        values = tuple(run.settings.get(name, NO_SETTING) for run in runs)
        if any(value != values[0] for value in values):
            texts = tuple(value if isinstance(value, str) else json_text(value) for value in values)
            rows.append(Row(name, tuple(map(_cell, values)), texts))
    return rows


def _cell(value: Any) -> Value:
    return value if isinstance(value, str | int | float) else json_text(value)


def _results(runs: Sequence[Run]) -> list[Row]:
    """Every result that at least one run has."""
    rows = []
    for name, (read, show) in RESULTS.items():
        values = [read(run) for run in runs]
        if any(value is not None for value in values):
            texts = tuple(NOT_MEASURED if value is None else show(value) for value in values)
            rows.append(Row(name, tuple(values), texts, _UNITS.get(show, "")))
    for name in dict.fromkeys(name for run in runs for _, scores in run.history.scores for name in scores):
        last = [next((found[name] for _, found in reversed(run.history.scores) if name in found), None) for run in runs]
        texts = tuple(NOT_MEASURED if value is None else f"{value:.3f}" for value in last)
        rows.append(Row(f"{name} of the last samples", tuple(last), texts))
    return rows


def _state(run: Run) -> str:
    return "finished" if run.finished else "not finished"


def _manifest_fact(name: str, inner: str | None = None) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        found = run.facts.get(name)
        return found.get(inner) if inner is not None and isinstance(found, dict) else found

    return read


def _training_loss(run: Run) -> float | None:
    means = running_mean(losses(run.history.steps))
    return float(means[-1]) if len(means) and math.isfinite(means[-1]) else None


def _last_validation(run: Run) -> float | None:
    return run.history.validation[-1][1] if run.history.validation else None


def _best(place: int) -> Callable[[Run], Any]:
    return lambda run: run.history.best[place] if run.history.best is not None else None


def _change(run: Run) -> float | None:
    before, after = run.facts.get("held_out_loss_before"), run.facts.get("held_out_loss_after")
    return None if before is None or after is None else after - before


def _perplexity(run: Run) -> float | None:
    after = run.facts.get("held_out_loss_after")
    return math.exp(after) if after is not None and after < 300 else None


def _speed(run: Run) -> float | None:
    spent_s = sum(stats.step_s for stats in run.history.steps)
    return run.history.tokens / spent_s if spent_s else None


def _train_s(run: Run) -> float:
    return float(run.facts.get("train_s") or sum(stats.step_s for stats in run.history.steps))


def _padding(run: Run) -> float | None:
    computed_tokens = sum(
        stats.tokens / (1 - stats.padding_share) for stats in run.history.steps if stats.padding_share < 1
    )
    return 1 - run.history.tokens / computed_tokens if computed_tokens else None


def _warned(run: Run) -> str | None:
    return ", ".join(warning["kind"] for warning in serious(run.facts)) or None


def _shrunk(run: Run) -> int | None:
    return sum(event["kind"] == "out of memory" for event in run.history.events) or None


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _signed_loss(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


RESULTS: Mapping[str, tuple[Callable[[Run], Any], Callable[[Any], str]]] = {
    "state": (_state, str),
    "WARNING": (_warned, str),
    "training rows": (_manifest_fact("rows", "train"), _whole),
    "validation rows": (_manifest_fact("rows", "validation"), _whole),
    "test rows": (_manifest_fact("rows", "test"), _whole),
    "steps": (lambda run: len(run.history.steps), _whole),
    "tokens trained": (lambda run: run.history.tokens, _whole),
    "training loss, running mean at the end": (_training_loss, _loss),
    "validation loss, last": (_last_validation, _loss),
    "validation loss, best": (_best(1), _loss),
    "best at step": (_best(0), _whole),
    "held-out loss before": (_manifest_fact("held_out_loss_before"), _loss),
    "held-out loss after": (_manifest_fact("held_out_loss_after"), _loss),
    "held-out loss, change": (_change, _signed_loss),
    "held-out perplexity after": (_perplexity, lambda value: f"{value:,.2f}"),
    "tokens/s": (_speed, _whole),
    "training time": (_train_s, duration),
    "peak memory": (_manifest_fact("peak_memory_bytes"), readable_bytes),
    "peak GPU memory, in tensors": (_manifest_fact("gpu_memory", "peak_allocated_bytes"), readable_bytes),
    "peak GPU memory, reserved": (_manifest_fact("gpu_memory", "peak_reserved_bytes"), readable_bytes),
    "GPU": (_manifest_fact("gpu_memory", "name"), str),
    "padding share": (_padding, _share),
    "steps retried, out of memory": (_shrunk, _whole),
    "device": (_manifest_fact("device"), str),
    "number format": (_manifest_fact("dtype"), str),
}

_UNITS = {_loss: "nats per answer token", _signed_loss: "nats per answer token", duration: "s", readable_bytes: "bytes",
          _share: "share"}  # fmt: skip

MISMATCHES = {
    "rows:test": "the test rows differ: held-out losses are not comparable.",
    "rows:validation": "the validation rows differ: validation losses are not comparable.",
    "base": "the base models differ: compare each run with its own held-out loss before training.",
    "tokenizer": "the tokenizers differ: losses are per token, so no loss is comparable.",
    "template": "the chat templates differ: the answers are scored after different prompts.",
    "rows:train": "the training rows differ as well as the settings.",
}


def _warnings(runs: Sequence[Run]) -> list[str]:
    """Notes on what makes the comparison unfair or limits what it shows."""
    warnings = []
    for name, sentence in MISMATCHES.items():
        known = {run.identity[name] for run in runs if name in run.identity}
        if len(known) > 1:
            warnings.append(sentence[0].upper() + sentence[1:])
        unknown = [run.label for run in runs if name not in run.identity]
        if unknown:
            warnings.append(f"The {_NAMES[name]} unknown for {', '.join(unknown)} and may differ.")
    for run in runs:
        warnings += [f"WARNING of {run.label}: {warning['text']}." for warning in serious(run.facts)]
    unfinished = [run.label for run in runs if not run.finished]
    if unfinished:
        warnings.append(f"Not finished: {', '.join(unfinished)}. Held-out losses are measured at the end.")
    if sum(run.facts.get("held_out_loss_after") is not None for run in runs) > 1:
        warnings.append(
            "Held-out losses have no confidence interval here, and each comes from one seed. To test a difference, "
            "export the runs and compare the models with `bench run`, which reports an interval and a verdict."
        )
    return warnings


_NAMES = {
    "rows:test": "test rows are",
    "rows:validation": "validation rows are",
    "rows:train": "training rows are",
    "base": "base model is",
    "tokenizer": "tokenizer is",
    "template": "chat template is",
}
