"""Metrics of the `evaluate` package, by name or as a local script. The file that names evaluate."""

import math
import os
from collections.abc import Sequence
from typing import Any

from bench.metrics import METRICS, Metric, Scored
from bench.results import MetricInfo
from bench.stats import mean, mean_table
from gladstone.errors import UnsupportedError


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of this package, and each named one that is not among them.

    Raises UnsupportedError if `evaluate` cannot load a name.
    """
    return METRICS | {name: _load(name) for name in dict.fromkeys(names) if name not in METRICS}


def _load(name: str) -> Metric:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import evaluate

    try:
        module = evaluate.load(name, keep_in_memory=True)
    # evaluate runs a foreign script and a downloader: what they raise is open
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(
            f"--metric {name}: none of this package's ({', '.join(METRICS)}), and evaluate cannot load it: {reason} "
            "Without a network, give the path of a local metric script (a .py file with an evaluate.Metric)."
        ) from error
    title = str(module.name)

    def score(answers: Sequence[str], references: Sequence[str]) -> Scored:
        values = [_score_one(module, name, pair) for pair in zip(answers, references, strict=True)]
        return Scored(tuple(values), mean_table(values), mean)

    return Metric(MetricInfo(name, title, higher_is_better=None), score)


def _score_one(module: Any, name: str, pair: tuple[str, str]) -> float:
    try:
        values = module.compute(predictions=[pair[0]], references=[pair[1]])
    except Exception as error:
        raise UnsupportedError(f"--metric {name}: the metric's own code failed on an answer: {error!r}.") from error
    numbers = {key: value for key, value in (values or {}).items() if isinstance(value, int | float)}
    chosen = numbers.get(module.name, next(iter(numbers.values())) if len(numbers) == 1 else None)
    if chosen is None or not math.isfinite(chosen):
        raise UnsupportedError(
            f"--metric {name}: expected one finite number per answer, called {module.name!r} or alone; "
            f"it gave {', '.join(values or {}) or 'nothing'}."
        )
    return float(chosen)
