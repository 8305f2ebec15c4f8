"""`finetune run`: from a recipe to a finished run folder, in one call or in several."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune import checkpoint as checkpoints
from finetune import trainable as training
from finetune.backend import load_trainable
from finetune.data.division import SETS
from finetune.data.prepare import DROPPED, PERSONAL, SUMMARY, prepare
from finetune.estimate import estimate_inputs, one_line
from finetune.evaluation import Judge, measure_loss
from finetune.inputs import Inputs, differences, read_inputs, write_inputs
from finetune.journal import StepStats
from finetune.loop import METRICS, Ended, Job, Loop, Watcher
from finetune.plots import plot_loss
from finetune.recipe import Recipe
from finetune.stopping import Limits
from gladstone.artifacts import (
    Manifest,
    is_finished,
    record_file,
    remove_partials,
    whole_file,
    write_manifest,
)
from gladstone.basemodel import Base
from gladstone.errors import ArtifactError, DataError, listed
from gladstone.host import check_disk, installed_versions, peak_memory_bytes
from gladstone.progress import Progress, Silent, step
from gladstone.quiet import output_to
from gladstone.tokenizer import TOKENIZER_FILES

VERSIONED = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "datasets")
LOG_NAME = "train.log"


@dataclass(frozen=True)
class Options:
    """How one call of a run goes: from the newest checkpoint or from the start, until when, and who looks on."""

    resume: bool = False
    limits: Limits = field(default_factory=Limits)
    watchers: tuple[Watcher, ...] = ()
    estimate: bool = False  # tell memory, disk and time beforehand, from a short measurement


@dataclass(frozen=True)
class RunResult:
    """What a run tells; `stopped` says why it is not finished ('' if it is), the losses are then not measured."""

    folder: Path
    rows: dict[str, int]
    steps: int
    tokens_per_s: float
    train_s: float
    shares: dict[str, float]
    stopped: str = ""
    loss_before: float | None = None
    loss_after: float | None = None
    best_validation: tuple[int, float] | None = None


def run(recipe: Recipe, out: Path, progress: Progress, options: Options | None = None) -> RunResult:
    """Train the recipe's adapter into `out`; the manifest is written last, and not if a limit or the user stops it.

    Raises ArtifactError if `out` holds a finished run, or one that was stopped and `options` do not say to go on, or
    one of another recipe, base or data; and whatever its parts raise.
    """
    options = options or Options()
    training.prepare_environment()  # before anything imports torch
    _check_folder(out, options)
    summary = prepare(recipe.data, out / "data", progress)
    check_disk(out, 300_000_000, "the adapter, its checkpoints, the tokenizer and the plots")
    for folder in (out, out / "data", out / "tokenizer"):
        remove_partials(folder)
    with output_to(out / LOG_NAME):
        inputs = read_inputs(recipe, out, progress, summary)
        found = _newest(inputs, progress) if options.resume else None
        write_inputs(inputs)
        if options.estimate:
            with step(progress, "Estimating"):
                progress.update(None, one_line(estimate_inputs(inputs, Silent())))
        outcome = _Training(inputs, progress, options).run(found)
    return _finish(inputs, outcome) if not outcome.ended.reason else _result(inputs, outcome)


def _check_folder(out: Path, options: Options) -> None:
    if is_finished(out):
        raise ArtifactError(f"{out}: already holds a finished run. Choose another folder with --out, or remove it.")
    saved = checkpoints.saved(out / checkpoints.FOLDER)
    if saved and not options.resume:
        raise ArtifactError(
            f"{out}: holds a run that was stopped after step {checkpoints.step_of(saved[-1])}. Go on with --resume, "
            "choose another folder with --out, or remove it."
        )
    if not saved:
        (out / LOG_NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Outcome:
    ended: Ended
    loss_after: float | None
    facts: dict[str, Any]


def _newest(inputs: Inputs, progress: Progress) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint. Raises ArtifactError with the differences if it is of another run."""
    with step(progress, "Reading the newest checkpoint"):
        found = checkpoints.newest_whole(inputs.out / checkpoints.FOLDER, partial(progress.update, None))
        if found is None:
            progress.update(None, "there is none: beginning anew")
            return None
        saved, manifest = found
        changed = differences(manifest.config, inputs.identity)
        if changed:
            raise ArtifactError(
                listed(
                    f"{inputs.out}: the run was begun with other settings, and cannot go on with these. Set them back, "
                    "or choose another folder with --out",
                    changed,
                )
            )
        progress.update(None, f"going on after step {saved.step}")
    return saved


class _Training:
    """One call's work on the model: from a checkpoint or the start to the saved adapter, or to where it was stopped."""

    def __init__(self, inputs: Inputs, progress: Progress, options: Options) -> None:
        self._inputs, self._progress, self._options = inputs, progress, options

    def run(self, found: checkpoints.Checkpoint | None) -> _Outcome:
        inputs, recipe, progress = self._inputs, self._inputs.recipe, self._progress
        with step(progress, "Loading the base model" + (" in 4 bit" if recipe.base.load_in_4bit else "")):
            trainable = load_trainable(inputs.base, recipe, inputs.tokenizer.padding_id, inputs.sets["train"].examples)
        loop = self._loop(trainable, found)
        try:
            if found is None:
                name = "Measuring the held-out loss before training"
                loop.notes["held_out_loss_before"] = self._measure(trainable, name)
            with step(progress, "Training"):
                ended = loop.run()
            after = None if ended.reason else self._close(trainable, loop)
        finally:
            loop.close()
        return _Outcome(ended, after, self._facts(trainable))

    def _loop(self, trainable: training.Trainable, found: checkpoints.Checkpoint | None) -> Loop:
        inputs = self._inputs
        job = Job(
            trainable,
            inputs.sets["train"].examples,
            inputs.recipe,
            inputs.out / checkpoints.FOLDER,
            inputs.identity,
            inputs.sources,
        )
        judge = Judge(trainable, inputs.sets["validation"].examples, inputs.recipe.training)
        return Loop(job, judge, self._options.limits, (_Shown(self._progress), *self._options.watchers), found)

    def _close(self, trainable: training.Trainable, loop: Loop) -> float:
        """Put the best step's adapter in place, measure it, save it."""
        inputs, best = self._inputs, loop.history.best
        last = len(loop.history.steps)
        if best is not None and best[0] != last and inputs.recipe.training.final == "best":
            with step(self._progress, f"Going back to step {best[0]}, the best on the validation rows"):
                loop.go_back(best[0])
        after = self._measure(trainable, "Measuring the held-out loss after training")
        with step(self._progress, "Saving the adapter"):
            _save_adapter(trainable, inputs.base, inputs.out)
            plot_loss(inputs.out / "loss.png", loop.history.steps, loop.history.validation)
        return after

    def _measure(self, trainable: training.Trainable, name: str) -> float:
        with step(self._progress, name):
            loss = measure_loss(trainable, self._inputs.sets["test"].examples, self._progress.update)
            self._progress.update(None, f"{loss:.3f} nats per answer token")
        return loss

    def _facts(self, trainable: training.Trainable) -> dict[str, Any]:
        return {
            "device": trainable.device_kind,
            "dtype": trainable.dtype,
            "gradient_checkpointing": trainable.checkpointing,
            "rows_padded": trainable.forward.padded,
            "peak_memory_bytes": peak_memory_bytes(),
        }


class _Shown:
    """The line that tells where a training is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begin_s, self._begun = time.monotonic(), 0

    def on_step(self, stats: StepStats, total: int) -> None:
        """Renew the line."""
        self._begun += 1
        left_s = (time.monotonic() - self._begin_s) / self._begun * (total - stats.step)
        note = f"step {stats.step}/{total}  loss {stats.loss_nats_per_token:.3f}  {_speed([stats]):.0f} tokens/s"
        if stats.step < total:
            note += f"  {left_s / 60:.1f} min left"
        self._progress.update(stats.step / total, note)

    def on_judged(self, step: int, loss: float) -> None:
        """The validation losses are in the metrics."""


def _speed(steps: Sequence[StepStats]) -> float:
    return sum(stats.tokens for stats in steps) / sum(stats.step_s for stats in steps) if steps else 0.0


def _save_adapter(trainable: training.Trainable, base: Base, out: Path) -> None:
    partial_folder = out / ".adapter.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    try:
        training.save_adapter(trainable, base.name, partial_folder)
        shutil.rmtree(out / "adapter", ignore_errors=True)  # of a call that was stopped before its manifest
        partial_folder.replace(out / "adapter")
    except OSError as error:
        raise ArtifactError(f"{out}: the adapter cannot be saved: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _result(inputs: Inputs, outcome: _Outcome) -> RunResult:
    ended = outcome.ended
    spent = sum(ended.seconds.values()) or 1.0
    return RunResult(
        folder=inputs.out,
        rows={name: len(tokenized.examples) for name, tokenized in inputs.sets.items()},
        steps=len(ended.history.steps),
        tokens_per_s=_speed(ended.history.steps),
        train_s=spent,
        shares={name: seconds / spent for name, seconds in ended.seconds.items()},
        stopped=ended.reason,
        loss_before=ended.notes.get("held_out_loss_before"),
        loss_after=outcome.loss_after,
        best_validation=ended.history.best,
    )


def _finish(inputs: Inputs, outcome: _Outcome) -> RunResult:
    out, history = inputs.out, outcome.ended.history
    if not history.steps:
        raise DataError("no optimizer step was made.")
    result = _result(inputs, outcome)
    with whole_file(out / METRICS) as copy:
        shutil.copyfile(out / checkpoints.FOLDER / METRICS, copy)
    sets = inputs.sets
    facts = outcome.facts | {
        "rows": result.rows,
        "left_out": dict(inputs.summary.dropped),
        "formats": [source["format"] for source in inputs.summary.sources],
        "too_long_left_out": {name: tokenized.too_long for name, tokenized in sets.items()},
        "cut": {name: tokenized.cut for name, tokenized in sets.items()},
        "reasoning_cut": {name: tokenized.reasoning_cut for name, tokenized in sets.items()},
        "held_out_loss_before": result.loss_before,
        "held_out_loss_after": result.loss_after,
        "validation_loss": history.validation,
        "best_step": result.best_validation[0] if result.best_validation else None,
        "events": history.events,
        "steps": result.steps,
        "tokens_per_s": round(result.tokens_per_s, 1),
        "train_s": round(result.train_s, 1),
        "time_shares": {name: round(share, 4) for name, share in result.shares.items()},
    }
    manifest = Manifest(
        stage="finetune",
        files=tuple(record_file(out, path) for path in _made_files(out)),
        parents=inputs.parents,
        config=inputs.recipe.model_dump(mode="json"),
        versions=installed_versions(*VERSIONED),
        template_sha256=inputs.template.sha256,
        seed=inputs.recipe.training.seed,
        facts=facts,
    )
    write_manifest(out, manifest)
    shutil.rmtree(out / checkpoints.FOLDER)
    return result


def _made_files(out: Path) -> Sequence[Path]:
    names = ["recipe.yaml", "chat_template.jinja", "metrics.jsonl", "loss.png"]
    names += [f"data/{name}" for name in (*(f"{name}.jsonl" for name in SETS), DROPPED, PERSONAL, SUMMARY)]
    names += [f"tokenizer/{name}" for name in TOKENIZER_FILES if (out / "tokenizer" / name).is_file()]
    return [out / name for name in names] + sorted((out / "adapter").iterdir())
