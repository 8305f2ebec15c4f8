"""`finetune run`: from a recipe to a finished run folder, in one or several calls."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config.schema import Recipe
from finetune.data.division import SETS
from finetune.data.prepare import has_set, prepare
from finetune.data.summary import CHANGED, CONFLICTS, DROPPED, PERSONAL, SUMMARY, Summary
from finetune.estimate.estimate import estimate_tokenized
from finetune.model import trainable as training
from finetune.model.launch import Launch, launched
from finetune.model.sharding import check_sharding
from finetune.monitor.plots import PLOTS
from finetune.monitor.trackers import TrackerCallback, check_trackers
from finetune.tokens.clock import note, time_of
from finetune.train import checkpoint as checkpoints
from finetune.train.inputs import Inputs, differences, read_inputs, reader_of, write_inputs
from finetune.train.loop import Loop
from finetune.train.opening_block import OpeningBlock
from finetune.train.session import CallOptions, Outcome, Session, speed
from finetune.train.time_left import TimeLeft
from finetune.train.verdict import Measured, RunWarning, find_warnings
from gladstone import file_names, run_folder
from gladstone.artifacts import (
    Manifest,
    atomic_file,
    check_room_for,
    is_finished,
    record_file,
    remove_partials,
    write_manifest,
)
from gladstone.commands.progress import Progress, Silent, step
from gladstone.config import build_config
from gladstone.errors import ArtifactError, DataError, listed
from gladstone.machine.gpu import use_device
from gladstone.machine.host import check_disk
from gladstone.machine.packages import installed_versions
from gladstone.models.tokenizer import tokenizer_files
from gladstone.process.lock import lock_folder
from gladstone.process.redirect_output import redirect_output
from gladstone.strict_json import json_text

VERSIONED = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "datasets")


@dataclass(frozen=True)
class RunResult:
    """What a run reports; `stopped` says why it is not finished ('' if it is).

    The losses are None if the run is not finished or has no test rows. `warnings` lists the serious ones first.
    """

    folder: Path
    rows: dict[str, int]
    steps: int
    tokens_per_s: float
    train_s: float
    shares: dict[str, float]
    stopped: str = ""
    warnings: tuple[RunWarning, ...] = ()
    loss_before: float | None = None
    loss_after: float | None = None
    best_validation: tuple[int, float] | None = None


def run(recipe: Recipe, out: Path, progress: Progress, options: CallOptions | None = None) -> RunResult:
    """Train the recipe's adapter into `out`; the manifest is written last, and only if the run finishes.

    Raises ArtifactError if `out` holds a finished run, a stopped one that `options` does not resume, or one of another
    recipe, base or data; UnsupportedError if the device that `options` asks for cannot be used; and what its parts
    raise.
    """
    options = options or CallOptions()
    training.prepare_environment()  # before anything imports torch
    check_trackers(recipe.training.report_to)
    check_room_for(out)  # before minutes of imports
    options = replace(options, computes_on=use_device(options.device))
    check_sharding(recipe)
    with launched(recipe.training.process_timeout_minutes) as launch:
        if not launch.is_main:
            return _follow(out, options, launch)
        _check_unfinished(out)
        with lock_folder(out / run_folder.LOG, "training"):
            _check_folder(out, options)
            return _lead(recipe, out, progress, options, launch)


def _lead(recipe: Recipe, out: Path, progress: Progress, options: CallOptions, launch: Launch) -> RunResult:
    """Run as the main process, which alone writes into the run folder."""
    reader = reader_of(recipe, progress, time_of(recipe, out, resume=options.resume, began=options.began))
    with redirect_output(out / run_folder.LOG):
        summary = prepare(recipe.data, out / run_folder.DATA, progress, reader.check)
        check_disk(out, 300_000_000, "the adapter, its checkpoints, the tokenizer and the plots")
        for folder in (out, out / run_folder.DATA, out / run_folder.TOKENIZER):
            remove_partials(folder)
        inputs = read_inputs(reader, out, progress, summary)
        checkpoint = _newest(inputs, progress) if options.resume else None
        write_inputs(inputs)
        config = inputs.recipe.model_dump(mode="json")
        launch.share(json_text(config))  # the other processes read these files
        with TrackerCallback(
            recipe.training.report_to, recipe.name, out, config, resume=checkpoint is not None
        ) as tracker:
            on_loaded, time_left = _opening(inputs, options, progress)
            call_options = replace(options, callbacks=(*options.callbacks, time_left, tracker), on_loaded=on_loaded)
            outcome = Session(inputs, progress, call_options, out / checkpoints.FOLDER, launch.join()).run(checkpoint)
            if outcome.loss_after is not None:
                tracker.log_held_out(outcome.result.notes["held_out_loss_before"], outcome.loss_after)
    return _finish(inputs, outcome) if not outcome.result.reason else _result(inputs, outcome)


def _opening(
    inputs: Inputs, options: CallOptions, progress: Progress
) -> tuple[Callable[[training.Trainable, Loop], None], TimeLeft]:
    """Return a callback for the opening block, and one for the measured time: both write to terminal and log."""
    date_note = note(inputs.template, inputs.recipe)
    notes = (*options.notes, *([date_note] if date_note else []))
    with step(progress, "Estimating memory and time"):
        examples = {name: tokenized.examples for name, tokenized in inputs.sets.items()}
        estimate = estimate_tokenized(inputs.recipe, inputs.base, examples)
    opening = OpeningBlock(inputs, estimate, options.limits, notes, options.computes_on)

    def report(text: str) -> None:
        print(text, flush=True)  # into the log
        options.show(text)

    time_left = TimeLeft(inputs, estimate, report)

    def show(trainable: training.Trainable, loop: Loop) -> None:
        report(opening.text(trainable, loop))
        time_left.follow(loop)

    return show, time_left


def _follow(out: Path, options: CallOptions, launch: Launch) -> RunResult:
    """Run as another process: the same training on its part of the rows, without writing files."""
    with tempfile.TemporaryDirectory() as scratch, redirect_output(Path(scratch) / run_folder.LOG), launch.named():
        recipe = build_config(Recipe, json.loads(launch.receive()), "the recipe of the first process")
        reader = reader_of(recipe, Silent(), time_of(recipe, out, resume=True))
        inputs = read_inputs(reader, out, Silent(), Summary())
        checkpoint = _newest(inputs, Silent()) if options.resume else None
        outcome = Session(inputs, Silent(), options, Path(scratch), launch.join()).run(checkpoint)
    return _result(inputs, outcome)


def _check_unfinished(out: Path) -> None:
    if is_finished(out):
        shutil.rmtree(
            out / checkpoints.FOLDER, ignore_errors=True
        )  # of a process killed just after writing its manifest
        raise ArtifactError(
            f"{out}: already holds a finished run. Choose another folder with --out, or remove this one."
        )


def _check_folder(out: Path, options: CallOptions) -> None:
    _check_unfinished(out)  # another process may have finished it in the meantime
    saved = checkpoints.saved(out / checkpoints.FOLDER)
    if saved and not options.resume:
        raise ArtifactError(
            f"{out}: holds a run that was stopped after step {checkpoints.step_of(saved[-1])}. Resume it with "
            "--resume, choose another folder with --out, or remove this one."
        )
    if not saved:
        os.truncate(out / run_folder.LOG, 0)


def _newest(inputs: Inputs, progress: Progress) -> checkpoints.Checkpoint | None:
    """Load the newest whole checkpoint. Raises ArtifactError, which lists the differences, if it is of another run."""
    folder = inputs.out / checkpoints.FOLDER
    notes: list[str] = []
    with step(progress, "Reading the newest checkpoint"):
        newest = checkpoints.newest_whole(folder, notes.append)
        if newest is None:
            progress.update(None, "none found: starting at the first step")
            return None
        saved, manifest = newest
        changed = differences(manifest.config, inputs.identity)
        if changed:
            raise ArtifactError(
                listed(
                    f"{inputs.out}: the run was started with other settings and cannot resume with these. Restore the "
                    "settings, or choose another folder with --out",
                    changed,
                )
            )
        if inputs.recipe.base.template_date and "template_date" not in manifest.config["recipe"].get("base", {}):
            notes.append(f"it has no date for the chat template: from here on {inputs.template.now}")
        checkpoints.set_aside(folder, saved.step)
        progress.update(None, "; ".join([*notes, f"resuming after step {saved.step}"]))
    return saved


def _result(inputs: Inputs, outcome: Outcome) -> RunResult:
    ended = outcome.result
    spent = sum(ended.seconds.values()) or 1.0
    return RunResult(
        folder=inputs.out,
        rows={name: len(tokenized.examples) for name, tokenized in inputs.sets.items()},
        steps=len(ended.history.steps),
        tokens_per_s=speed(ended.history.steps),
        train_s=spent,
        shares={name: seconds / spent for name, seconds in ended.seconds.items()},
        stopped=ended.reason,
        warnings=find_warnings(ended.history, _measured(inputs, outcome)),
        loss_before=ended.notes.get("held_out_loss_before"),
        loss_after=outcome.loss_after,
        best_validation=ended.history.best,
    )


def _measured(inputs: Inputs, outcome: Outcome) -> Measured:
    """The losses that judge a run: of the test rows, or without any of the validation rows."""
    notes, vocabulary = outcome.result.notes, outcome.facts["vocabulary"]
    test, validation = (inputs.sets[name].examples for name in ("test", "validation"))
    if test or not validation:
        return Measured(notes.get("held_out_loss_before"), outcome.loss_after, len(test), vocabulary)
    before = notes.get("validation_loss_before")
    return Measured(before, _kept_validation_loss(inputs, outcome), len(validation), vocabulary, "validation loss")


def _kept_validation_loss(inputs: Inputs, outcome: Outcome) -> float | None:
    """The validation loss of the adapter that is kept; None if the run is not finished."""
    history = outcome.result.history
    if outcome.result.reason or history.best is None:
        return None
    return history.best[1] if inputs.recipe.training.final == "best" else history.validation[-1][1]


def _finish(inputs: Inputs, outcome: Outcome) -> RunResult:
    out, history = inputs.out, outcome.result.history
    if not history.steps:
        raise DataError("the run has no optimizer step.")
    result = _result(inputs, outcome)
    with atomic_file(out / run_folder.METRICS) as copy:
        shutil.copyfile(out / checkpoints.FOLDER / run_folder.METRICS, copy)
    sets = inputs.sets
    facts = outcome.facts | {
        "rows": result.rows,
        "left_out": dict(inputs.summary.dropped),
        "formats": [source["format"] for source in inputs.summary.sources],
        "too_long_left_out": {name: tokenized.too_long for name, tokenized in sets.items()},
        "cut": {name: tokenized.cut for name, tokenized in sets.items()},
        "reasoning_cut": {name: tokenized.reasoning_cut for name, tokenized in sets.items()},
        "scored_turns": {name: tokenized.scored_turns for name, tokenized in sets.items()},
        "scored_tokens": {name: tokenized.scored_tokens for name, tokenized in sets.items()},
        "held_out_loss_before": result.loss_before,
        "held_out_loss_after": result.loss_after,
        "validation_loss_before": outcome.result.notes.get("validation_loss_before"),
        "validation_loss": history.validation,
        "best_step": result.best_validation[0] if result.best_validation else None,
        "events": history.events,
        "warnings": [warning.as_json() for warning in result.warnings],
        "steps": result.steps,
        "skipped_steps": sum(stats.skipped for stats in history.steps),
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
    plots = [name for name in PLOTS if (out / name).exists()]
    names = [run_folder.RECIPE, file_names.CHAT_TEMPLATE, run_folder.METRICS, *plots]
    reports = (DROPPED, CHANGED, CONFLICTS, PERSONAL, SUMMARY)
    sets = [
        run_folder.set_path(out / run_folder.DATA, name).name for name in SETS if has_set(out / run_folder.DATA, name)
    ]
    names += [f"{run_folder.DATA}/{name}" for name in (*sets, *reports)]
    made = [out / name for name in names]
    return [*made, *tokenizer_files(out / run_folder.TOKENIZER), *sorted((out / run_folder.ADAPTER).iterdir())]
