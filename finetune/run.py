"""`finetune run`: from a recipe to a finished run folder, in one call or in several."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune import checkpoint as checkpoints
from finetune import trainable as training
from finetune.backend import load_trainable
from finetune.data.division import SETS
from finetune.data.prepare import DROPPED, PERSONAL, SUMMARY, prepare
from finetune.evaluation import Judge, measure_loss
from finetune.inputs import Inputs, differences, read_inputs, write_inputs
from finetune.journal import StepStats
from finetune.labels import token_count
from finetune.lock import held
from finetune.loop import METRICS, OUT_OF_MEMORY, Ended, Job, Loop
from finetune.plots import PLOTS, plot_run
from finetune.recipe import Recipe
from finetune.stopping import RESERVE, Interrupted, Interruption, Limits
from finetune.trackers import Reporter, check_trackers
from finetune.watching import Watcher
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
from gladstone.progress import Progress, step
from gladstone.quiet import output_to
from gladstone.tokenizer import TOKENIZER_FILES

VERSIONED = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "datasets")
LOG_NAME = "train.log"
PLOTTING_S = 5.0  # more than drawing the plots and hashing the files takes


@dataclass(frozen=True)
class Options:
    """How one call of a run goes: from the newest checkpoint or from the start, until when, and who looks on."""

    resume: bool = False
    limits: Limits = field(default_factory=Limits)
    watchers: tuple[Watcher, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """What a run tells; `stopped` says why it is not finished ('' if it is), the losses are then not measured.

    `warnings` are what the user should know of how it went.
    """

    folder: Path
    rows: dict[str, int]
    steps: int
    tokens_per_s: float
    train_s: float
    shares: dict[str, float]
    stopped: str = ""
    warnings: tuple[str, ...] = ()
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
    check_trackers(recipe.training.report_to)
    _check_unfinished(out)
    with held(out / LOG_NAME):
        _check_folder(out, options)
        return _run(recipe, out, progress, options)


def _run(recipe: Recipe, out: Path, progress: Progress, options: Options) -> RunResult:
    summary = prepare(recipe.data, out / "data", progress)
    check_disk(out, 300_000_000, "the adapter, its checkpoints, the tokenizer and the plots")
    for folder in (out, out / "data", out / "tokenizer"):
        remove_partials(folder)
    with output_to(out / LOG_NAME):
        inputs = read_inputs(recipe, out, progress, summary)
        found = _newest(inputs, progress) if options.resume else None
        write_inputs(inputs)
        config = recipe.model_dump(mode="json")
        with Reporter(recipe.training.report_to, recipe.name, out, config, resume=found is not None) as reporter:
            outcome = _Training(inputs, progress, options, reporter).run(found)
            if outcome.loss_after is not None:
                reporter.on_measured(outcome.ended.notes["held_out_loss_before"], outcome.loss_after)
    return _finish(inputs, outcome) if not outcome.ended.reason else _result(inputs, outcome)


def _check_unfinished(out: Path) -> None:
    if is_finished(out):
        raise ArtifactError(f"{out}: already holds a finished run. Choose another folder with --out, or remove it.")


def _check_folder(out: Path, options: Options) -> None:
    _check_unfinished(out)  # another process may have ended it meanwhile
    saved = checkpoints.saved(out / checkpoints.FOLDER)
    if saved and not options.resume:
        raise ArtifactError(
            f"{out}: holds a run that was stopped after step {checkpoints.step_of(saved[-1])}. Go on with --resume, "
            "choose another folder with --out, or remove it."
        )
    if not saved:
        os.truncate(out / LOG_NAME, 0)


@dataclass(frozen=True)
class _Outcome:
    ended: Ended
    loss_after: float | None
    facts: dict[str, Any]


def _newest(inputs: Inputs, progress: Progress) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint. Raises ArtifactError with the differences if it is of another run."""
    folder = inputs.out / checkpoints.FOLDER
    told: list[str] = []
    with step(progress, "Reading the newest checkpoint"):
        found = checkpoints.newest_whole(folder, told.append)
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
        checkpoints.set_aside(folder, saved.step)
        progress.update(None, "; ".join([*told, f"going on after step {saved.step}"]))
    return saved


class _Training:
    """One call's work on the model: from a checkpoint or the start to the saved adapter, or to where it was stopped."""

    def __init__(self, inputs: Inputs, progress: Progress, options: Options, reporter: Reporter) -> None:
        self._inputs, self._progress, self._options = inputs, progress, options
        self._watchers = (_Shown(progress), *options.watchers, reporter)

    def run(self, found: checkpoints.Checkpoint | None) -> _Outcome:
        inputs, recipe, progress = self._inputs, self._inputs.recipe, self._progress
        with step(progress, "Loading the base model" + (" in 4 bit" if recipe.base.load_in_4bit else "")):
            trainable = load_trainable(inputs.base, recipe, inputs.tokenizer.padding_id, inputs.sets["train"].examples)
        loop = self._loop(trainable, found)
        try:
            with Interruption() as interruption:
                stops = partial(self._stops, interruption)
                with suppress(Interrupted):  # the loop sees it, too, and stops before its first step
                    self._measure_before(trainable, loop, stops)
                begun = len(loop.history.steps)
                with step(progress, "Training"):
                    ended = loop.run(interruption)
                limits = self._options.limits
                if len(loop.history.steps) == begun and ended.reason and ended.reason == limits.time_name:
                    ended = replace(ended, reason=f"{ended.reason}, which the start alone took,")
                return self._close(trainable, loop, ended, stops)
        finally:
            loop.close()

    def _stops(self, interruption: Interruption) -> str:
        """Why a measurement must be given up; '' if it need not."""
        limits = self._options.limits
        return interruption.name or (limits.time_name if limits.out_of_time(0) else "")

    def _measure_before(self, trainable: training.Trainable, loop: Loop, stops: Callable[[], str]) -> None:
        if loop.history.steps or "held_out_loss_before" in loop.notes:
            return
        begin_s = time.monotonic()
        loss = self._measure(trainable, "Measuring the held-out loss before training", stops)
        loop.notes |= {"held_out_loss_before": loss, "measuring_s": time.monotonic() - begin_s}

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
        judge = Judge(trainable, inputs.sets["validation"].examples, inputs.recipe.training, inputs.tokenizer.decode)
        return Loop(job, judge, self._options.limits, self._watchers, found)

    def _close(self, trainable: training.Trainable, loop: Loop, ended: Ended, stops: Callable[[], str]) -> _Outcome:
        """Put the best step's adapter in place, measure it, save it, unless the run stops before that."""
        inputs, best = self._inputs, loop.history.best
        last, after = len(loop.history.steps), None
        if not ended.reason and self._options.limits.out_of_time(
            RESERVE * (loop.notes.get("measuring_s", 0) + loop.saving_s) + PLOTTING_S
        ):
            ended = replace(ended, reason=f"{self._options.limits.time_name}, too soon to measure and save the end,")
        if ended.reason:
            return _Outcome(ended, None, self._facts(trainable))
        if best is not None and best[0] != last and inputs.recipe.training.final == "best":
            with step(self._progress, f"Going back to step {best[0]}, the best on the validation rows"):
                loop.go_back(best[0])
        try:
            after = self._measure(trainable, "Measuring the held-out loss after training", stops)
        except Interrupted:
            return _Outcome(replace(ended, reason=stops()), None, self._facts(trainable))
        with step(self._progress, "Saving the adapter"):
            _save_adapter(trainable, inputs.base, inputs.out)
            lengths = [token_count(example) for example in inputs.sets["train"].examples]
            plot_run(inputs.out, loop.history, lengths, (loop.notes["held_out_loss_before"], after))
        return _Outcome(ended, after, self._facts(trainable))

    def _measure(self, trainable: training.Trainable, name: str, stops: Callable[[], str]) -> float:
        with step(self._progress, name):
            rows = self._inputs.sets["test"].examples
            loss = measure_loss(trainable, rows, self._progress.update, lambda: bool(stops()))
            self._progress.update(None, f"{loss:.3f} nats per answer token")
        if not math.isfinite(loss):
            raise DataError(
                f"the held-out loss is {loss}: {self._inputs.base.name} computes no probabilities for these rows. Are "
                "its weights damaged?"
            )
        return loss

    def _facts(self, trainable: training.Trainable) -> dict[str, Any]:
        return {
            "device": trainable.device_kind,
            "dtype": trainable.dtype,
            "gradient_checkpointing": trainable.checkpointing,
            "rows_padded": trainable.forward.padded,
            "compiled": trainable.compiled,
            "peak_memory_bytes": peak_memory_bytes(),
        }


class _Shown(Watcher):
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
        warnings=tuple(
            f"memory did not suffice in step {event['step']}: from there on a micro-batch has at most "
            f"{event['batch_tokens']:,} tokens"
            for event in ended.history.events
            if event["kind"] == OUT_OF_MEMORY
        ),
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
    names = ["recipe.yaml", "chat_template.jinja", "metrics.jsonl", *PLOTS]
    names += [f"data/{name}" for name in (*(f"{name}.jsonl" for name in SETS), DROPPED, PERSONAL, SUMMARY)]
    names += [f"tokenizer/{name}" for name in TOKENIZER_FILES if (out / "tokenizer" / name).is_file()]
    return [out / name for name in names] + sorted((out / "adapter").iterdir())
