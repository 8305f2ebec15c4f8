"""`finetune run`: from a recipe to a finished run folder."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from finetune import token_cache
from finetune import trainable as training
from finetune.backend import backend_of, is_seq2seq
from finetune.data.division import SETS
from finetune.data.prepare import DROPPED, PERSONAL, SUMMARY, Summary, prepare, read_set
from finetune.labels import Tokenized, tokenize_all
from finetune.plots import plot_loss
from finetune.recipe import Recipe
from gladstone.artifacts import (
    Manifest,
    is_finished,
    record_file,
    remove_partials,
    sha256_path,
    whole_file,
    write_manifest,
    write_text,
)
from gladstone.basemodel import Base, resolve_base
from gladstone.errors import ArtifactError, DataError
from gladstone.host import check_disk, installed_versions
from gladstone.progress import Progress, step
from gladstone.quiet import output_to
from gladstone.template import ChatTemplate
from gladstone.tokenizer import TOKENIZER_FILES, FolderTokenizer, load_tokenizer

VERSIONED = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "datasets")
LOG_NAME = "train.log"


@dataclass(frozen=True)
class RunResult:
    """What a finished run tells."""

    folder: Path
    rows: dict[str, int]
    loss_before: float
    loss_after: float
    steps: int
    tokens_per_s: float
    train_s: float


def run(recipe: Recipe, out: Path, progress: Progress) -> RunResult:
    """Train the recipe's adapter into `out`; the manifest is written last.

    Raises ArtifactError if `out` holds a finished run, and whatever its parts raise.
    """
    training.prepare_environment()  # before anything imports torch
    if is_finished(out):
        raise ArtifactError(f"{out}: already holds a finished run. Choose another folder with --out, or remove it.")
    summary = prepare(recipe.data, out / "data", progress)
    check_disk(out, 300_000_000, "the adapter, the tokenizer and the plots")
    hashes = _data_hashes(recipe)  # now, whatever becomes of the files while training
    for folder in (out, out / "data", out / "tokenizer"):
        remove_partials(folder)
    (out / LOG_NAME).unlink(missing_ok=True)
    with output_to(out / LOG_NAME):
        base = resolve_base(recipe.base.model, progress)
        with step(progress, "Loading the tokenizer and the rows"):
            tokenizer = load_tokenizer(base.folder)
            template = tokenizer.template(recipe.own_template())
            sets = _tokenize(out / "data", template, tokenizer, (recipe, base))
            progress.update(None, _hits(sets, recipe.base.max_tokens))
        _write_inputs(out, recipe, base, template)
        outcome = _train(recipe, base, tokenizer, sets, (out, progress))
    parents = {"base": base.fingerprint} | hashes
    return _finish(out, recipe, (parents, summary, sets, template), outcome)


@dataclass(frozen=True)
class _Outcome:
    steps: list[training.StepStats]
    validation: list[tuple[int, float]]
    loss_before: float
    loss_after: float
    train_s: float
    facts: dict[str, Any]


def _tokenize(
    data: Path, template: ChatTemplate, tokenizer: FolderTokenizer, chosen: tuple[Recipe, Base]
) -> dict[str, Tokenized]:
    recipe, base = chosen
    pairs = is_seq2seq(base)

    def tokenize(name: str) -> Tokenized:
        return tokenize_all(read_set(data, name), template, tokenizer, recipe.limits, pairs=pairs)

    parts = {
        "template": template.sha256,
        "tokenizer": {
            name: sha256_path(base.folder / name) for name in TOKENIZER_FILES if (base.folder / name).is_file()
        },
        "limits": vars(recipe.limits),
        "pairs": pairs,
        "versions": installed_versions("gladstone", "transformers", "tokenizers"),
    }
    return {
        name: token_cache.cached(parts | {"rows": sha256_path(data / f"{name}.jsonl")}, partial(tokenize, name))[0]
        for name in SETS
    }


def _hits(sets: dict[str, Tokenized], max_tokens: int) -> str:
    """What the limits did to the rows, in words."""
    counts = {
        f"rows of more than {max_tokens:,} tokens left out": sum(each.too_long for each in sets.values()),
        f"cut to {max_tokens:,} tokens": sum(each.cut for each in sets.values()),
        "with their reasoning cut": sum(each.reasoning_cut for each in sets.values()),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _write_inputs(out: Path, recipe: Recipe, base: Base, template: ChatTemplate) -> None:
    write_text(out / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    write_text(out / "chat_template.jinja", template.source)
    for name in TOKENIZER_FILES:
        if (base.folder / name).is_file():
            with whole_file(out / "tokenizer" / name) as partial:
                shutil.copyfile(base.folder / name, partial)
        else:  # of a run with another base, stopped in this folder
            (out / "tokenizer" / name).unlink(missing_ok=True)
    write_text(out / "tokenizer" / "chat_template.jinja", template.source)


def _train(
    recipe: Recipe,
    base: Base,
    tokenizer: FolderTokenizer,
    sets: dict[str, Tokenized],
    place: tuple[Path, Progress],
) -> _Outcome:
    out, progress = place
    longest = max(len(example.input_ids) for example in sets["train"].examples)
    with step(progress, "Loading the base model" + (" in 4 bit" if recipe.base.load_in_4bit else "")):
        trainable = backend_of(base).load_trainable(base, recipe, tokenizer.padding_id, longest)
    before = _measure(trainable, sets["test"], progress, "Measuring the held-out loss before training")
    recorder = _Recorder(recipe, trainable, sets["validation"], out, progress)
    with step(progress, "Training"):
        begin_s = time.monotonic()
        with recorder:
            backend_of(base).train(trainable, sets["train"].examples, recipe, recorder.on_step, out / ".work.partial")
        train_s = time.monotonic() - begin_s
    after = _measure(trainable, sets["test"], progress, "Measuring the held-out loss after training")
    with step(progress, "Saving the adapter"):
        _save_adapter(trainable, base, out)
        plot_loss(out / "loss.png", recorder.steps, recorder.validation)
    facts = {
        "device": trainable.device_kind,
        "dtype": trainable.dtype,
        "gradient_checkpointing": trainable.checkpointing,
    }
    return _Outcome(recorder.steps, recorder.validation, before, after, train_s, facts)


class _Recorder:
    """Writes metrics.jsonl line by line under a temporary name, measures the validation loss at its times."""

    def __init__(
        self, recipe: Recipe, trainable: training.Trainable, validation: Tokenized, out: Path, progress: Progress
    ) -> None:
        self.steps: list[training.StepStats] = []
        self.validation: list[tuple[int, float]] = []
        self._recipe, self._trainable, self._held_out = recipe, trainable, validation
        self._out, self._progress = out, progress
        self._whole = whole_file(out / "metrics.jsonl")
        self._begin_s = time.monotonic()

    def __enter__(self) -> None:
        self._file = self._whole.__enter__().open("w", encoding="utf-8", buffering=1)

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        self._whole.__exit__(*error)

    def on_step(self, stats: training.StepStats, last: int) -> None:
        self.steps.append(stats)
        record = {"kind": "step", **dataclasses.asdict(stats)}
        self._file.write(json.dumps(record) + "\n")
        self._show(stats, last)
        if _due(stats.step, last, self._recipe.training.evaluations):
            loss = training.measure_loss(self._trainable, self._held_out.examples)
            self.validation.append((stats.step, loss))
            self._file.write(json.dumps({"kind": "validation", "step": stats.step, "loss_nats_per_token": loss}) + "\n")

    def _show(self, stats: training.StepStats, last: int) -> None:
        elapsed_s = time.monotonic() - self._begin_s
        left_s = elapsed_s / stats.step * (last - stats.step)
        speed = sum(past.tokens for past in self.steps) / sum(past.step_s for past in self.steps)
        note = f"step {stats.step}/{last}  loss {stats.loss_nats_per_token:.3f}  {speed:.0f} tokens/s"
        if stats.step < last:
            note += f"  {left_s / 60:.1f} min left"
        self._progress.update(stats.step / last, note)


def _due(step_number: int, last: int, evaluations: int) -> bool:
    """True at `evaluations` steps spread evenly, the last step among them."""
    return step_number * evaluations // last > (step_number - 1) * evaluations // last


def _measure(trainable: training.Trainable, held_out: Tokenized, progress: Progress, name: str) -> float:
    with step(progress, name):
        loss = training.measure_loss(trainable, held_out.examples, progress.update)
        progress.update(None, f"{loss:.3f} nats per answer token")
    return loss


def _save_adapter(trainable: training.Trainable, base: Base, out: Path) -> None:
    partial = out / ".adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        training.save_adapter(trainable, base.name, partial)
        shutil.rmtree(out / "adapter", ignore_errors=True)  # of a run that was stopped before its manifest
        partial.replace(out / "adapter")
    except OSError as error:
        raise ArtifactError(f"{out}: the adapter cannot be saved: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finish(
    out: Path,
    recipe: Recipe,
    inputs: tuple[dict[str, str], Summary, dict[str, Tokenized], ChatTemplate],
    outcome: _Outcome,
) -> RunResult:
    parents, summary, sets, template = inputs
    if not outcome.steps:
        raise DataError("no optimizer step was made.")
    shutil.rmtree(out / ".work.partial", ignore_errors=True)
    rows = {name: len(tokenized.examples) for name, tokenized in sets.items()}
    tokens_per_s = sum(stats.tokens for stats in outcome.steps) / sum(stats.step_s for stats in outcome.steps)
    facts = outcome.facts | {
        "rows": rows,
        "left_out": dict(summary.dropped),
        "formats": [source["format"] for source in summary.sources],
        "too_long_left_out": {name: tokenized.too_long for name, tokenized in sets.items()},
        "cut": {name: tokenized.cut for name, tokenized in sets.items()},
        "reasoning_cut": {name: tokenized.reasoning_cut for name, tokenized in sets.items()},
        "held_out_loss_before": outcome.loss_before,
        "held_out_loss_after": outcome.loss_after,
        "validation_loss": outcome.validation,
        "steps": len(outcome.steps),
        "tokens_per_s": round(tokens_per_s, 1),
        "train_s": round(outcome.train_s, 1),
    }
    manifest = Manifest(
        stage="finetune",
        files=tuple(record_file(out, path) for path in _made_files(out)),
        parents=parents,
        config=recipe.model_dump(mode="json"),
        versions=installed_versions(*VERSIONED),
        template_sha256=template.sha256,
        seed=recipe.training.seed,
        facts=facts,
    )
    write_manifest(out, manifest)
    return RunResult(
        out, rows, outcome.loss_before, outcome.loss_after, len(outcome.steps), tokens_per_s, outcome.train_s
    )


def _data_hashes(recipe: Recipe) -> dict[str, str]:
    return {f"data:{source.path}": sha256_path(source.file()) for source in recipe.data.sources}


def _made_files(out: Path) -> Sequence[Path]:
    names = ["recipe.yaml", "chat_template.jinja", "metrics.jsonl", "loss.png"]
    names += [f"data/{name}" for name in (*(f"{name}.jsonl" for name in SETS), DROPPED, PERSONAL, SUMMARY)]
    names += [f"tokenizer/{name}" for name in TOKENIZER_FILES if (out / "tokenizer" / name).is_file()]
    return [out / name for name in names] + sorted((out / "adapter").iterdir())
