"""One call of a run: from its start or a checkpoint to the saved adapter, or to where the call was stopped."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from finetune.model import trainable as training
from finetune.model.backend import chosen_backend
from finetune.model.distributed import SINGLE_PROCESS, DistributedContext
from finetune.model.load import load_trainable
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import StepStats
from finetune.monitor.plots import plot_run
from finetune.tokens.examples import token_count
from finetune.train import checkpoint as checkpoints
from finetune.train.divergence import row_names
from finetune.train.evaluation import Validator, measure_loss
from finetune.train.inputs import Inputs
from finetune.train.job import Job, LoopResult
from finetune.train.loop import Loop
from finetune.train.stop_conditions import RESERVE, CallLimits, Interrupted, Interruption
from gladstone import run_folder
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError
from gladstone.machine.gpu import Device, Wanted
from gladstone.machine.gpu_memory import gpu_memory_facts
from gladstone.machine.host import peak_memory_bytes
from gladstone.models.base_model import Base

PLOTTING_S = 5.0  # an upper bound on drawing the plots and hashing the files


@dataclass(frozen=True)
class CallOptions:
    """How one call of a run starts, when it stops, what it computes on, and what it reports.

    `show` receives the opening block, `notes` are lines of it about the recipe, `on_loaded` is called before anything
    is measured. `began` is the time for a chat template that writes it, if neither recipe nor run has one; None: now.
    `device` is what is asked for, `computes_on` what `finetune.run.run` finds for it.
    """

    resume: bool = False
    limits: CallLimits = field(default_factory=CallLimits)
    callbacks: tuple[Callback, ...] = ()
    show: Callable[[str], None] = lambda text: None
    notes: tuple[str, ...] = ()
    on_loaded: Callable[[training.Trainable, Loop], None] = lambda trainable, loop: None
    began: datetime | None = None
    device: Wanted = "auto"
    computes_on: Device | None = None


@dataclass(frozen=True)
class Outcome:
    """How a call ended; `loss_after` is None if the run is not finished or has no test rows."""

    result: LoopResult
    loss_after: float | None
    facts: dict[str, Any]


class Session:
    """One call of a run: loads the model, measures, trains, and saves the adapter."""

    def __init__(
        self,
        inputs: Inputs,
        progress: Progress,
        options: CallOptions,
        folder: Path,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """Checkpoints go into `folder`; only the main process writes any that last."""
        self._inputs, self._progress, self._options = inputs, progress, options
        self._folder, self._context = folder, context
        self._callbacks = (_ProgressLine(progress), *options.callbacks) if context.is_main else ()

    def run(self, checkpoint: checkpoints.Checkpoint | None) -> Outcome:
        """Train from the start or from a checkpoint. Raises what `Loop.run` raises, and DataError for a lost loss."""
        inputs, recipe, progress = self._inputs, self._inputs.recipe, self._progress
        with step(progress, "Loading the base model" + (" in 4 bit" if recipe.base.load_in_4bit else "")):
            rows, pad_id = inputs.sets["train"].examples, inputs.tokenizer.padding_id
            trainable = load_trainable(inputs.base, recipe, pad_id, rows, self._context)
        loop = self._loop(trainable, checkpoint)
        try:
            if self._context.is_main:
                self._options.on_loaded(trainable, loop)
            with Interruption() as interruption:
                stops = partial(self._stops, interruption)
                with suppress(Interrupted):  # the loop sees the interruption, too, and stops before its first step
                    self._measure_before(trainable, loop, stops)
                steps_before = len(loop.history.steps)
                with step(progress, "Training"):
                    result = loop.run(interruption)
                limits = self._options.limits
                if len(loop.history.steps) == steps_before and result.reason and result.reason == limits.time_name:
                    result = replace(result, reason=f"{result.reason}, which loading and measuring took up,")
                return self._close(trainable, loop, result, stops)
        finally:
            loop.close()

    def _stops(self, interruption: Interruption) -> str:
        """Why a measurement must stop, '' if it need not; never with several processes, which wait for each other."""
        if self._context.world_size > 1:
            return ""
        limits = self._options.limits
        return interruption.name or (limits.time_name if limits.out_of_time(0) else "")

    def _measure_before(self, trainable: training.Trainable, loop: Loop, stops: Callable[[], str]) -> None:
        if loop.history.steps or "held_out_loss_before" in loop.notes:
            return
        begin_s = time.monotonic()
        measured = {"held_out_loss_before": self._measure(trainable, "before training", stops)}
        validation = self._inputs.sets["validation"].examples
        if measured["held_out_loss_before"] is None and validation:  # the only loss that can judge such a run
            with step(self._progress, "Measuring the validation loss before training"):
                measured["validation_loss_before"] = self._loss(trainable, "validation", stops)
        loop.notes |= measured | {"measuring_s": time.monotonic() - begin_s}

    def _loop(self, trainable: training.Trainable, checkpoint: checkpoints.Checkpoint | None) -> Loop:
        inputs = self._inputs
        job = Job(
            trainable,
            inputs.sets["train"].examples,
            inputs.recipe,
            self._folder,
            inputs.identity,
            inputs.sources,
        )
        validator = Validator(
            trainable, inputs.sets["validation"].examples, inputs.recipe.training, inputs.tokenizer.decode
        )
        validator.name_rows = self._row_names("validation")
        return Loop(job, validator, self._options.limits, self._callbacks, checkpoint)

    def _close(
        self, trainable: training.Trainable, loop: Loop, result: LoopResult, stops: Callable[[], str]
    ) -> Outcome:
        """Restore the best step's adapter, measure it and save it, unless the call stops before."""
        inputs, best = self._inputs, loop.history.best
        last, after = len(loop.history.steps), None
        if not result.reason and self._options.limits.out_of_time(
            RESERVE * (loop.notes.get("measuring_s", 0) + loop.saving_s) + PLOTTING_S
        ):
            result = replace(
                result, reason=f"{self._options.limits.time_name}, not enough time left to evaluate and save,"
            )
        result = replace(result, reason=self._context.broadcast(result.reason))
        if result.reason:
            return Outcome(result, None, self._facts(trainable))
        if best is not None and best[0] != last and inputs.recipe.training.final == "best":
            with step(self._progress, f"Restoring step {best[0]}, the best on the validation rows"):
                loop.go_back(inputs.out / checkpoints.FOLDER, best[0])
        try:
            after = self._measure(trainable, "after training", stops)
        except Interrupted:
            return Outcome(replace(result, reason=stops()), None, self._facts(trainable))
        if self._context.is_main:
            with step(self._progress, "Saving the adapter"):
                _save_adapter(trainable, inputs.base, inputs.out)
                lengths = [token_count(example) for example in inputs.sets["train"].examples]
                held_out = None if after is None else (loop.notes["held_out_loss_before"], after)
                plot_run(inputs.out, loop.history, lengths, held_out)
        return Outcome(result, after, self._facts(trainable))

    def _measure(self, trainable: training.Trainable, when: str, stops: Callable[[], str]) -> float | None:
        """Measure the loss of the test rows; None if there are none."""
        if not self._inputs.sets["test"].examples:
            return None
        with step(self._progress, f"Measuring the held-out loss {when}"):
            return self._loss(trainable, "test", stops)

    def _loss(self, trainable: training.Trainable, name: str, stops: Callable[[], str]) -> float:
        """Measure the loss of a set's rows."""
        rows, named = self._inputs.sets[name].examples, self._row_names(name)
        loss = measure_loss(trainable, rows, self._progress.update, lambda: bool(stops()), named)
        self._progress.update(None, f"{loss:.3f} nats per answer token")
        return loss

    def _row_names(self, name: str) -> Callable[[Sequence[int]], str]:
        """Return the function that names rows of a set for a message."""
        return partial(row_names, partial(self._inputs.sources, name=name))

    def _facts(self, trainable: training.Trainable) -> dict[str, Any]:
        return {
            "device": trainable.device_kind,
            "machine": self._options.computes_on.as_json() if self._options.computes_on else None,
            "backend": chosen_backend(trainable).as_json(),
            "dtype": trainable.dtype,
            "gradient_checkpointing": trainable.checkpointing,
            "rows_padded": trainable.forward.padded,
            "compiled": trainable.compiled,
            "vocabulary": int(trainable.model.get_input_embeddings().weight.shape[0]),
            "processes": self._context.world_size,
            "peak_memory_bytes": peak_memory_bytes(),
            "gpu_memory": gpu_memory_facts(),
        }


class _ProgressLine(Callback):
    """The progress line of the training."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begin_s, self._steps = time.monotonic(), 0

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """Update the line."""
        self._steps += 1
        left_s = (time.monotonic() - self._begin_s) / self._steps * (total - stats.step)
        note = f"step {stats.step}/{total}  loss {stats.loss_nats_per_token:.3f}  {speed([stats]):.0f} tokens/s"
        if stats.skipped:
            note += "  skipped: the gradient is not finite"
        if stats.step < total:
            note += f"  {left_s / 60:.1f} min left"
        self._progress.update(stats.step / total, note)


def speed(steps: Sequence[StepStats]) -> float:
    """Tokens per second of these steps, without padding; 0 if there are none."""
    return sum(stats.tokens for stats in steps) / sum(stats.step_s for stats in steps) if steps else 0.0


def _save_adapter(trainable: training.Trainable, base: Base, out: Path) -> None:
    partial_folder = out / ".adapter.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    try:
        training.save_adapter(trainable, base.name, partial_folder)
        shutil.rmtree(
            out / run_folder.ADAPTER, ignore_errors=True
        )  # left by a call that was stopped before its manifest
        partial_folder.replace(out / run_folder.ADAPTER)
    except OSError as error:
        raise ArtifactError(f"{out}: the adapter cannot be saved: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
