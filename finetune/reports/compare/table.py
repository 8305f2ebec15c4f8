"""What the runs did, as one table; which settings differ; and where a comparison would not be fair."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.monitor.smoothing import losses, running_mean
from finetune.reports.compare.runs import NO_SETTING, Run
from finetune.train.verdict import serious
from gladstone.machine.host import readable_bytes
from gladstone.report.durations import duration

NOT_KNOWN = "–"
FREE = ("name", "description", "hub")  # of a recipe: names, not settings
Value = str | int | float | None


@dataclass(frozen=True)
class Row:
    """One line of the table: a name, each run's value in `unit`, and the value as people read it."""

    name: str
    values: tuple[Value, ...]
    texts: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """The runs, the settings that differ, the findings, and what to mind."""

    runs: tuple[Run, ...]
    settings: tuple[Row, ...]
    findings: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The runs' names."""
        return tuple(run.label for run in self.runs)


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side."""
    return Comparison(tuple(runs), tuple(differing(runs)), tuple(_findings(runs)), tuple(_warnings(runs)))


def differing(runs: Sequence[Run]) -> list[Row]:
    """The settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name.partition(".")[0] not in FREE)
    rows = []
    for name in names:
        values = tuple(run.settings.get(name, NO_SETTING) for run in runs)
        if any(value != values[0] for value in values):
            texts = tuple(
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
            )
            rows.append(Row(name, tuple(map(_cell, values)), texts))
    return rows


def _cell(value: Any) -> Value:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _findings(runs: Sequence[Run]) -> list[Row]:
    """Every finding that at least one run has."""
    rows = []
    for name, (read, show) in FINDINGS.items():
        values = [read(run) for run in runs]
        if any(value is not None for value in values):
            texts = tuple(NOT_KNOWN if each is None else show(each) for each in values)
            rows.append(Row(name, tuple(values), texts, _UNITS.get(show, "")))
    for name in dict.fromkeys(name for run in runs for _, scores in run.history.scores for name in scores):
        last = [next((found[name] for _, found in reversed(run.history.scores) if name in found), None) for run in runs]
        texts = tuple(NOT_KNOWN if each is None else f"{each:.3f}" for each in last)
        rows.append(Row(f"{name} of the last samples", tuple(last), texts))
    return rows


def _state(run: Run) -> str:
    return "finished" if run.finished else "not finished"


def _fact(name: str, inner: str | None = None) -> Callable[[Run], Any]:
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
    return ", ".join(each["kind"] for each in serious(run.facts)) or None


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


FINDINGS: Mapping[str, tuple[Callable[[Run], Any], Callable[[Any], str]]] = {
    "state": (_state, str),
    "WARNING": (_warned, str),
    "training rows": (_fact("rows", "train"), _whole),
    "validation rows": (_fact("rows", "validation"), _whole),
    "test rows": (_fact("rows", "test"), _whole),
    "steps": (lambda run: len(run.history.steps), _whole),
    "tokens trained": (lambda run: run.history.tokens, _whole),
    "training loss, running mean at the end": (_training_loss, _loss),
    "validation loss, last": (_last_validation, _loss),
    "validation loss, best": (_best(1), _loss),
    "best at step": (_best(0), _whole),
    "held-out loss before": (_fact("held_out_loss_before"), _loss),
    "held-out loss after": (_fact("held_out_loss_after"), _loss),
    "held-out loss, change": (_change, _signed_loss),
    "held-out perplexity after": (_perplexity, lambda value: f"{value:,.2f}"),
    "tokens/s": (_speed, _whole),
    "training time": (_train_s, duration),
    "peak memory": (_fact("peak_memory_bytes"), readable_bytes),
    "padding share": (_padding, _share),
    "steps redone, out of memory": (_shrunk, _whole),
    "device": (_fact("device"), str),
    "number format": (_fact("dtype"), str),
}

_UNITS = {_loss: "nats per answer token", _signed_loss: "nats per answer token", duration: "s", readable_bytes: "bytes",
          _share: "share"}  # fmt: skip

OTHER = {
    "rows:test": "the runs were measured on different test rows: their held-out losses say nothing about each other.",
    "rows:validation": "the validation rows differ: the validation losses say nothing about each other.",
    "base": "the base models differ: compare each with its own loss before.",
    "tokenizer": "the tokenizers differ: a loss per token is of other tokens, so no loss here compares the runs.",
    "template": "the chat templates differ: the answers are scored behind different prompts.",
    "rows:train": "the training rows differ, not the settings alone.",
}


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What makes the comparison unfair, or would make a reader see more in it than there is."""
    told = []
    for name, sentence in OTHER.items():
        known = {run.identity[name] for run in runs if name in run.identity}
        if len(known) > 1:
            told.append(sentence[0].upper() + sentence[1:])
        unknown = [run.label for run in runs if name not in run.identity]
        if unknown:
            told.append(f"Of {', '.join(unknown)} the {_NAMES[name]} not known: they may differ.")
    for run in runs:
        told += [f"WARNING of {run.label}: {each['text']}." for each in serious(run.facts)]
    unfinished = [run.label for run in runs if not run.finished]
    if unfinished:
        told.append(f"Not finished: {', '.join(unfinished)}. What a held-out loss would be is not known yet.")
    if sum(run.facts.get("held_out_loss_after") is not None for run in runs) > 1:
        told.append(
            "A difference of held-out losses is not judged: each is a mean without an interval, of one seed. Export "
            "the runs and let `bench run` compare the models row by row: it gives the difference an interval and a "
            "verdict."
        )
    return told


_NAMES = {
    "rows:test": "test rows are",
    "rows:validation": "validation rows are",
    "rows:train": "training rows are",
    "base": "base model is",
    "tokenizer": "tokenizer is",
    "template": "chat template is",
}
