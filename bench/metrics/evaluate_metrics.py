"""Metrics of the `evaluate` package, by name or as a local script. The file that names evaluate."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from bench.metrics.metrics import METRICS, Metric, MetricScores, scored
from bench.metrics.writing_systems import EMPTY, ENGLISH, detect_writing_systems
from bench.results import MetricInfo
from gladstone.errors import UnsupportedError

PROBED = 3  # references


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The built-in metrics, and every named metric of the evaluate package.

    Raises UnsupportedError if `evaluate` cannot load a name.
    """
    return METRICS | {name: _load(name) for name in dict.fromkeys(names) if name not in METRICS}


def _load(name: str) -> Metric:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import evaluate

    try:
        module = evaluate.load(name, keep_in_memory=True)
    # evaluate runs a third-party script and a download, which may raise anything
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(
            f"--metric {name}: not a built-in metric ({', '.join(METRICS)}), and evaluate cannot load it: {reason} "
            "Without a network, give the path of a local metric script (a .py file with an evaluate.Metric)."
        ) from error
    title = str(module.name)

    def score_one(answer: str, reference: str) -> float:
        return _score_one(module, name, (answer, reference))

    def score(answers: Sequence[str], references: Sequence[str]) -> MetricScores:
        values = [score_one(*pair) for pair in zip(answers, references, strict=True)]
        return scored(values, unseen=_blind(score_one, references))

    return Metric(MetricInfo(name, title, higher_is_better=None), score)


def _blind(score_one: Callable[[str, str], float], references: Sequence[str]) -> str:
    """The reason why a third-party metric cannot score text that is not English, '' if it can.

    Such metrics have tokenisers of their own. A metric is blind to a reference that it scores no higher than any text.
    """
    kinds = detect_writing_systems(tuple(references))
    beyond = [text for text, writing in zip(references, kinds, strict=True) if writing.kind not in (ENGLISH, EMPTY)]
    for text in beyond[:PROBED]:
        other = next((each for each in references if each.strip() and each != text), None)
        if other is None or score_one(text, text) != score_one(other, text):
            return ""
    return "it scores a reference in this script no higher than any other text" if beyond else ""


def _score_one(module: Any, name: str, pair: tuple[str, str]) -> float:
    try:
        values = module.compute(predictions=[pair[0]], references=[pair[1]])
    except Exception as error:
        raise UnsupportedError(f"--metric {name}: the code of the metric failed on an answer: {error!r}.") from error
    numbers = {key: value for key, value in (values or {}).items() if isinstance(value, int | float)}
    chosen = numbers.get(module.name, next(iter(numbers.values())) if len(numbers) == 1 else None)
    if chosen is None or not math.isfinite(chosen):
        raise UnsupportedError(
            f"--metric {name}: expected one finite number per answer, named {module.name!r} or the only one; "
            f"it returned {', '.join(values or {}) or 'nothing'}."
        )
    return float(chosen)
