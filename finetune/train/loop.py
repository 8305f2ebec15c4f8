"""The training loop: optimizer steps that can stop after any of them and resume bit for bit. Names torch.

It is our own rather than a library's trainer because of three guarantees. The rows of a step depend on its number
alone, so that a killed run loses only the steps after its last checkpoint. A step that runs out of memory is repeated
in smaller micro-batches with the same gradient. The loss is the mean over the scored tokens of a step, however the step
is divided into micro-batches.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.model.loss import Batch
from finetune.model.optimizer import learning_rates, make_optimizer
from finetune.model.out_of_memory import out_of_memory
from finetune.model.trainable import release_memory
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, MetricsLog, StepStats
from finetune.tokens.examples import token_count
from finetune.tokens.step_schedule import StepSchedule
from finetune.train import checkpoint as checkpoints
from finetune.train.checkpoint import Checkpoint
from finetune.train.divergence import NO_GRADIENT, check_divergence, check_skips, check_step, row_names
from finetune.train.evaluation import Validator
from finetune.train.job import OUT_OF_MEMORY, SKIPPED, Job, LoopResult
from finetune.train.random_state import random_state, set_random_state
from finetune.train.saving import Saver
from finetune.train.stop_conditions import RESERVE, CallLimits, Interrupted, Interruption
from gladstone import run_folder
from gladstone.errors import ArtifactError, DataError, UnsupportedError
from gladstone.machine.openmp import adapt_to_other_work


@dataclass(frozen=True)
class _Moment:
    """The state of the loop after a step, but for adapter and optimizer."""

    step: int
    random: dict[str, Any]
    scaler: dict[str, Any]
    metrics_bytes: int


class Loop:
    """The training of one run, from its first step or from a checkpoint."""

    def __init__(
        self,
        job: Job,
        validator: Validator,
        limits: CallLimits,
        callbacks: Sequence[Callback] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Start at the first step, or after `checkpoint`. Raises ArtifactError if the checkpoint does not fit."""
        import torch

        self._job, self._validator, self._limits, self._callbacks = job, validator, limits, callbacks
        self._training = training = job.recipe.training
        self._model, self._forward = job.trainable.model, job.trainable.forward
        self._context = job.trainable.context
        self._lengths = [token_count(example) for example in job.examples]
        self.schedule = StepSchedule(training, self._lengths, padded=self._forward.padded)
        self.total = self.schedule.steps
        self._micro_batch_tokens = self.schedule.micro_batch_tokens
        self._optimizer = make_optimizer(self._model, training)
        self._peak_rates = [group["lr"] for group in self._optimizer.param_groups]
        self._rate = learning_rates(training, self.total)
        parameters = self._model.named_parameters()
        self._parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._scaler = job.trainable.make_scaler()
        self._step = 0
        self._sound: _Moment | None = None  # before the steps that were skipped in a row
        self._saver = Saver(job.folder, job.identity, training, checkpoint.step if checkpoint else -1)
        self.seconds = dict.fromkeys(("data", "step", "evaluation", "saving"), 0.0)
        self.notes: dict[str, Any] = {}
        self._context.broadcast_parameters(list(self._parameters.values()))
        if checkpoint is None:
            self._metrics_log = MetricsLog(job.folder / run_folder.METRICS)
            torch.manual_seed(training.seed)
        else:
            self._restore(checkpoint)

    @property
    def saving_s(self) -> float:
        """Seconds that the slowest checkpoint of this call took to save."""
        return self._saver.slowest_s

    @property
    def history(self) -> History:
        """The metrics of the run so far."""
        return self._metrics_log.history

    def _restore(self, saved: Checkpoint) -> None:
        self._load_trained(saved.trained)
        state = saved.state
        try:
            self._optimizer.load_state_dict(saved.optimizer)
            self._scaler.load_state_dict(state["scaler"])
            set_random_state(saved.random)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{self._job.folder}: step {saved.step}'s checkpoint does not fit: {error}.") from None
        self._metrics_log = MetricsLog(self._job.folder / run_folder.METRICS, saved.metrics)
        self._step, self._micro_batch_tokens = saved.step, state["budget_tokens"]
        self.notes, self.seconds = state["notes"], self.seconds | state["seconds"]

    def run(self, interruption: Interruption | None = None) -> LoopResult:
        """Train until the recipe's end, a limit or an interruption.

        Raises DataError if the loss diverged or is not finite, ArtifactError if a file cannot be written,
        UnsupportedError if memory does not suffice for a single row, and what a callback raises.
        """
        if interruption is None:
            with Interruption() as own:
                return self.run(own)
        adapt_to_other_work()
        for callback in self._callbacks:
            callback.on_train_begin(self.history, self.total)
        try:
            reason = self._run(interruption)
        finally:
            self._job.trainable.train()
        return LoopResult(reason, self.history, self.seconds, self.notes)

    def _load_trained(self, tensors: Mapping[str, Any]) -> None:
        import torch

        saved, current = (
            {name: tensor.shape for name, tensor in group.items()} for group in (tensors, self._parameters)
        )
        if saved != current:
            raise ArtifactError(f"{self._job.folder}: the checkpoint is of an adapter with other layers.")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[name])

    def go_back(self, folder: Path, step: int) -> None:
        """Load the adapter of an earlier step's checkpoint. Raises ArtifactError if it is damaged."""
        try:
            self._load_trained(checkpoints.load_trained(folder, step))
        except ArtifactError as error:
            raise ArtifactError(
                f"the checkpoint of step {step}, the best one, is damaged: {error} To keep the last step's adapter, "
                "resume with --resume --set training.final=last."
            ) from None

    def close(self) -> None:
        """Close the metrics file."""
        self._metrics_log.close()

    def _run(self, interruption: Interruption) -> str:
        made, trained = 0, 0  # steps and tokens of this call
        self._validator.interrupted = lambda: (
            self._context.world_size == 1
            and (interruption.caught is not None or self._limits.out_of_time(RESERVE * self.saving_s))
        )
        while True:
            with suppress(Interrupted):  # the validation runs when the run resumes
                self._validate_if_due()
            reason = interruption.name or self._finished() or self._limits.reached(made, trained, self._next_s())
            reason = self._context.broadcast(reason)
            if reason or self._saver.is_due(self._step, self.history):
                self.save()
            if reason:
                return "" if reason == "done" else reason
            stats = self._make_step()
            made, trained = made + 1, trained + stats.tokens

    def _notify(self, call: Callable[[Callback], None]) -> None:
        try:
            for callback in self._callbacks:
                call(callback)
        except Exception:
            self.save()
            raise

    def _finished(self) -> str:
        patience = self._training.patience
        patient = patience is None or self._validator.without_progress(self.history) < patience
        return "" if self._step < self.total and patient else "done"

    def _next_s(self) -> float:
        """Seconds until the loop can stop again: the slowest recent step, a validation if one is due, and saving."""
        recent = [stats.step_s for stats in self.history.steps[-20:]]
        step_s = max(recent, default=0.0)
        validation_s = self._validator.seconds if self._validates_after(self._step + 1) else 0.0
        return step_s + validation_s + RESERVE * self.saving_s

    def _make_step(self) -> StepStats:
        number = self._step
        rows = self.schedule.rows(number)
        self._set_learning_rate(number)
        begin_s = time.monotonic()
        before = self._moment()
        if not self.history.skipped_in_a_row:
            self._sound = before
        while True:
            try:
                stats = self._attempt(rows, number, begin_s)
                break
            except DataError:
                self._save_as_of(before)
                raise
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self._context.sharded:  # the other processes wait for this one
                    raise
                self._shrink(rows, error)
            set_random_state(before.random)
        self._record(stats, before.scaler.get("scale", 1.0))
        check_divergence(self.history.applied, self._vocabulary, lambda: self._row_names(rows))
        self._step += 1
        self._notify(lambda callback: callback.on_step_end(stats, self.total))
        return stats

    def _record(self, stats: StepStats, scale: float) -> None:
        """Log a step; raise DataError if too many were skipped in a row, after a checkpoint from before them."""
        self._metrics_log.append_step(stats)
        if not stats.skipped:
            return
        loss, norm = stats.loss_nats_per_token, stats.grad_norm
        self._metrics_log.append(SKIPPED, stats.step, loss_nats_per_token=loss, grad_norm=norm, loss_scale=scale)

        def rows(numbers: Sequence[int]) -> str:
            found = dict.fromkeys(row for number in numbers for row in self.schedule.rows(number - 1))
            return self._row_names(list(found))

        try:
            check_skips(self.history, rows)
        except DataError:
            if self._sound:
                self._save_as_of(self._sound)
            raise

    @property
    def _vocabulary(self) -> int:
        return int(self._model.get_input_embeddings().weight.shape[0])

    def _attempt(self, rows: Sequence[int], number: int, begin_s: float) -> StepStats:
        """Forward, backward and update. Nothing has changed if forward or backward runs out of memory."""
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        with self._timed("data"):
            own = self._context.own_part(sorted(rows, key=lambda row: -self._lengths[row]))
            divided = self.schedule.micro_batches(own, self._micro_batch_tokens)
            batches = [self._forward.batch([self._job.examples[row] for row in batch]) for batch in divided]
        targets = sum(self._job.examples[row].target_tokens for row in rows)
        if targets == 0:
            named = self._row_names(rows)
            raise DataError(f"step {number + 1} has no scored token: nothing can be learnt from {named}.")
        with self._timed("step"):
            loss = self._gradient(batches, targets)
            self._scaler.unscale_(self._optimizer)
            parameters = [parameter for parameter in self._parameters.values() if parameter.grad is not None]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._training.max_grad_norm))
            check_step(number + 1, loss, norm, lambda: self._row_names(rows), scaled=self._scaler.is_enabled())
            self._update(number, skip=not (math.isfinite(loss) and math.isfinite(norm)))
        counts = sum(batch.tokens for batch in batches), sum(batch.computed_tokens for batch in batches)
        tokens, computed_tokens = self._context.all_reduce_sum(*counts)
        return StepStats(
            step=number + 1,
            loss_nats_per_token=loss,
            learning_rate=max(group["lr"] for group in self._optimizer.param_groups),
            grad_norm=norm,
            target_tokens=targets,
            tokens=int(tokens),
            padding_share=max(0.0, 1 - tokens / computed_tokens),  # a shared prefix makes the computed tokens fewer
            step_s=time.monotonic() - begin_s,
        )

    def _update(self, number: int, *, skip: bool) -> None:
        """Change the adapter, unless the step is skipped, and the scale of the next loss."""
        try:
            if not skip:
                self._scaler.step(self._optimizer)
            self._scaler.update()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UnsupportedError(  # half of the adapter may have changed: the step cannot be repeated
                f"out of memory in the update of step {number + 1}. Lower lora.rank, or choose an optimizer with less "
                "state, such as training.optimizer=sgd; saved checkpoints are whole."
            ) from error

    def _gradient(self, batches: Sequence[Batch], targets: int) -> float:
        total: Any = 0.0
        for batch in batches:
            with self._job.trainable.autocast():
                loss = self._forward.loss(batch, targets)
            if not loss.requires_grad:
                raise DataError(NO_GRADIENT)
            self._scaler.scale(loss).backward()
            total = total + loss.detach()
        self._match_micro_batches(batches, targets)
        self._context.all_reduce_gradients(list(self._parameters.values()))
        return self._context.all_reduce_sum(float(total))[0]

    def _match_micro_batches(self, batches: Sequence[Batch], targets: int) -> None:
        """Compute as many micro-batches as the process with most of them: sharded weights are gathered together."""
        if not self._context.sharded:
            return
        for _ in range(int(self._context.all_reduce_max(len(batches))) - len(batches)):
            (self._forward.loss(batches[-1], targets) * 0).backward()

    def _row_names(self, rows: Sequence[int]) -> str:
        return row_names(self._job.sources, rows)

    def _shrink(self, rows: Sequence[int], error: BaseException) -> None:
        """Halve the tokens of a micro-batch. Raises UnsupportedError if a single row already takes too much memory."""
        self._optimizer.zero_grad(set_to_none=True)
        divided = self.schedule.micro_batches(rows, self._micro_batch_tokens)
        if len(divided) == len(rows):
            longest = max(self._lengths[row] for row in rows)
            raise UnsupportedError(
                f"out of memory in step {self._step + 1} with a single row of {longest:,} tokens. Set "
                "training.gradient_checkpointing=on or base.load_in_4bit=true, or lower base.max_tokens."
            ) from error
        largest = max(sum(self._lengths[row] for row in batch) for batch in divided)
        self._micro_batch_tokens = min(self._micro_batch_tokens, largest) // 2
        self._metrics_log.append(OUT_OF_MEMORY, self._step + 1, batch_tokens=self._micro_batch_tokens)
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        release_memory()

    def _set_learning_rate(self, number: int) -> None:
        share = self._rate(number)
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * share

    def _validates_after(self, step: int) -> bool:
        return bool(self._validator.held_out) and self.schedule.validates_after(step)

    def _validate_if_due(self) -> None:
        validated = bool(self.history.validation) and self.history.validation[-1][0] == self._step
        if self._step == 0 or validated or not self._validates_after(self._step):
            return
        with self._timed("evaluation"):
            try:
                report = self._validator.evaluate(self._step, self._metrics_log)
            except DataError:
                self.save()
                raise
        best = self.history.best
        if best is not None and best[0] == self._step:
            self.save()
        self._notify(report)

    def save(self) -> None:
        """Write a checkpoint of the last step and remove old ones. Raises ArtifactError if it cannot be written."""
        self._save(self._moment())

    def _moment(self) -> _Moment:
        return _Moment(self._step, random_state(), self._scaler.state_dict(), self._metrics_log.size_bytes)

    def _save_as_of(self, moment: _Moment) -> None:
        """Write a checkpoint of an earlier step, since which neither adapter nor optimizer has changed."""
        if self._context.is_main:
            self._saver.remove_after(moment.step)
            if moment.step:
                self._save(moment)

    def _save(self, moment: _Moment) -> None:
        if self._saver.step == moment.step or not self._context.is_main:
            return
        with self._timed("saving"):
            state = {
                "budget_tokens": self._micro_batch_tokens,
                "notes": self.notes,
                "scaler": moment.scaler,
                "seconds": self.seconds,
            }
            trained = {name: parameter.detach().cpu() for name, parameter in self._parameters.items()}
            optimizer = self._optimizer.state_dict()
            metrics = self._metrics_log.lines[: moment.metrics_bytes]
            saved = Checkpoint(moment.step, trained, optimizer, moment.random, state, metrics)
            self._saver.save(saved, self.history)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - begin_s
