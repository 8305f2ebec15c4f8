"""Measurements made by hand, for tests of what is computed and shown from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import BenchConfig
from bench.metrics.metrics import METRICS
from bench.report.summary import Measurements, summarise
from bench.results import Answer, Item, Loss, Measured, ModelFile, Report, SpeedRun
from gladstone.chat.messages import Message


def model_file(label: str, **changes: Any) -> ModelFile:
    fields: dict[str, Any] = {
        "path": Path(f"/models/{label}.gguf"),
        "label": label,
        "sha256": label * 8,
        "size_bytes": 98_000_000,
        "quantisation": "Q8_0",
        "tensor_types": {"Q8_0": 210, "F32": 61},
        "architecture": "llama",
        "parameters": 134_500_000,
        "template_sha256": "t" * 64,
    }
    return ModelFile(**fields | changes)


def speed_run(factor: float = 1.0) -> SpeedRun:
    return SpeedRun(0.3, 0.2 / factor, 256, 500 * factor, 64, 100 * factor, 270_000_000)


def make_inputs(texts: dict[str, list[str]], nats: dict[str, list[float]] | None = None) -> Measurements:
    """Measurements of models that answered with these texts; nats default to 1 a token."""
    count = len(next(iter(texts.values())))
    items = tuple(
        Item(f"rows.jsonl:{number + 1}", (Message("user", f"Question {number}?"),), Message("assistant", "the heart"))
        for number in range(count)
    )
    measured = []
    for place, (label, answers) in enumerate(texts.items()):
        loss = nats[label] if nats else [10.0] * count
        measured.append(
            Measured(
                losses=tuple(Loss(value, 10) for value in loss),
                answers=tuple(Answer(text, None, "end", 9, 5) for text in answers),
                quality_peak_memory_bytes=1,
                speed=tuple(speed_run(place + 1) for _ in range(3)),
            )
        )
    models = tuple(model_file(label) for label in texts)
    return Measurements(models, items, tuple(measured), METRICS, BenchConfig((), Path("rows.jsonl")))


def make_report(texts: dict[str, list[str]], nats: dict[str, list[float]] | None = None) -> Report:
    settings = {"data": "rows.jsonl", "format": "qa", "rows": 4, "rows_in_file": 4, "answers": 4}
    settings |= {"max_tokens": 128, "threads": 2, "seed": 0, "context_tokens": 4096, "asked": "through a template"}
    provenance = {
        "date": "2026-01-01",
        "data_sha256": "d" * 64,
        "processor": "P",
        "cores": 2,
        "versions": {"python": "3"},
    }
    return replace(summarise(make_inputs(texts, nats), []), settings=settings, provenance=provenance)
