"""Histories of runs that never were, as smooth or as rough as a test needs them."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.monitor.metrics_log import History, MetricsLog, StepStats
from gladstone.artifacts import Manifest, record_file, write_manifest


def made_up_history(steps: int, validations: int = 4, seed: int = 0, level: float = 1.6) -> History:
    """A loss that falls from about 4 to `level` nats with noise, as real ones do."""
    draw = random.Random(seed)
    history = History()
    for step in range(1, steps + 1):
        done = step / steps
        tokens = draw.randint(1500, 2300)
        history.steps.append(
            StepStats(
                step=step,
                loss_nats_per_token=level + 2.4 * math.exp(-6 * done) + draw.gauss(0, 0.2),
                learning_rate=2e-4 * (1 - done),
                grad_norm=0.5 + draw.random(),
                target_tokens=tokens // 2,
                tokens=tokens,
                padding_share=0.04,
                step_s=tokens / draw.randint(350, 420),
            )
        )
    for place in range(1, min(validations, steps) + 1):
        step = steps * place // min(validations, steps)
        history.validation.append((step, level + 0.1 + 2.3 * math.exp(-6 * step / steps)))
    return history


def write_metrics(path: Path, history: History) -> None:
    """The history as the training writes it."""
    metrics_log = MetricsLog(path)
    for stats in history.steps:
        metrics_log.append_step(stats)
        for step, loss in history.validation:
            if step == stats.step:
                metrics_log.append("validation", step, loss_nats_per_token=loss)
    metrics_log.close()


def write_finished_run(folder: Path, history: History, config: Mapping[str, Any], **facts: Any) -> Path:
    """A finished run's folder as far as its manifest, its metrics and its test set tell of it."""
    write_metrics(folder / "metrics.jsonl", history)
    write_sets(folder, facts.pop("test_question", "What is asthma?"))
    files = [folder / "data" / f"{name}.jsonl" for name in ("train", "validation", "test")]
    manifest = Manifest(
        stage=facts.pop("stage", "finetune"),
        files=tuple(record_file(folder, file) for file in (*files, folder / "tokenizer" / "tokenizer.json")),
        parents={"base": facts.pop("base", "base-1")},
        config=dict(config),
        versions={"gladstone": "0.1.0"},
        template_sha256=facts.pop("template", "template-1"),
        facts={
            "rows": {"train": 320, "validation": 40, "test": 40},
            "held_out_loss_before": 3.9,
            "held_out_loss_after": 1.9,
            "validation_loss": history.validation,
            "steps": len(history.steps),
            "tokens_per_s": 381.4,
            "train_s": 612.0,
            "peak_memory_bytes": 1_234_567_890,
            "device": "cpu",
            "dtype": "bfloat16",
            **facts,
        },
    )
    write_manifest(folder, manifest)
    return folder


def write_sets(folder: Path, test_question: str = "What is asthma?") -> None:
    """Sets of one row each, and a tokenizer's file."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        row = {"question": test_question if name == "test" else f"What is {name}?"}
        (folder / "data" / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")


def write_run_under_way(folder: Path, history: History, config: Mapping[str, Any]) -> Path:
    """A run's folder before its first checkpoint."""
    write_metrics(folder / "checkpoints" / "metrics.jsonl", history)
    write_sets(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return folder
