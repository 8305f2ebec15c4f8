"""The training loop: optimizer steps that can stop after any of them and go on bit for bit. Names torch.

It is our own rather than a trainer's because of what must hold here: a step's rows depend on nothing but its number, so
that a killed run loses only what came after its checkpoint; a step that does not fit into memory is done again in
smaller pieces with the same gradient; and the loss is the mean over the step's scored tokens, however it was cut.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.loss import Batch
from finetune.model.trainable import Trainable, out_of_memory, release_memory
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, Journal, StepStats
from finetune.tokens.step_schedule import StepSchedule
from finetune.tokens.tokenize import Example, token_count
from finetune.train import checkpoint as checkpoints
from finetune.train.checkpoint import Checkpoint
from finetune.train.evaluation import Validator
from finetune.train.optimizer import learning_rates, make_optimizer
from finetune.train.stop_conditions import RESERVE, Interrupted, Interruption, Limits
from gladstone import run_folder
from gladstone.errors import ArtifactError, DataError, UnsupportedError
from gladstone.machine.openmp import adapt_to_other_work

OUT_OF_MEMORY = "out of memory"  # kind of an event
EARLY_STEPS = 10  # mean loss of the first ones, and of the last ones, where an exploding loss is looked for
NAMED_ROWS = 8
NO_GRADIENT = "step 1 has no gradient: nothing would be learnt. Do the layers of lora.targets reach the answers?"


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where its checkpoints go; `identity` is what a run that goes on must share."""

    trainable: Trainable
    examples: Sequence[Example]
    recipe: Recipe
    folder: Path
    identity: dict[str, Any]
    sources: Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True)
class Ended:
    """Why the loop ended ('' if its work is done), and what it noted."""

    reason: str
    history: History
    seconds: dict[str, float]
    notes: dict[str, Any]


class Loop:
    """One run's training, from its first step or from a checkpoint."""

    def __init__(
        self,
        job: Job,
        validator: Validator,
        limits: Limits,
        callbacks: Sequence[Callback] = (),
        found: Checkpoint | None = None,
    ) -> None:
        """Begin anew, or go on behind the checkpoint `found`."""
        import torch

        self._job, self._validator, self._limits, self._callbacks = job, validator, limits, callbacks
        self._training = training = job.recipe.training
        self._model, self._forward = job.trainable.model, job.trainable.forward
        self._context = job.trainable.context
        self._lengths = [token_count(example) for example in job.examples]
        self.schedule = StepSchedule(training, self._lengths, padded=self._forward.padded)
        self.total = self.schedule.steps
        self._budget = self.schedule.micro_batch_tokens
        self._optimizer = make_optimizer(self._model, training)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._rate = learning_rates(training, self.total)
        self._parameters = {name: each for name, each in self._model.named_parameters() if each.requires_grad}
        half = job.trainable.device_kind == "cuda" and job.trainable.dtype == "float16"
        self._scaler = torch.amp.GradScaler(job.trainable.device_kind, enabled=half)
        self._step = 0
        self._saved_step, self._saved_s = -1, time.monotonic()
        self.saving_s = 0.0  # what the slowest checkpoint of this call took
        self.seconds = dict.fromkeys(("data", "step", "evaluation", "saving"), 0.0)
        self.notes: dict[str, Any] = {}
        if found is None:
            self._journal = Journal(job.folder / run_folder.METRICS)
            torch.manual_seed(training.seed)
        else:
            self._restore(found)

    @property
    def history(self) -> History:
        """What was told so far."""
        return self._journal.history

    def _restore(self, saved: Checkpoint) -> None:
        self._load_trained(saved.trained)
        state = saved.state
        try:
            self._optimizer.load_state_dict(saved.optimizer)
            self._scaler.load_state_dict(state["scaler"])
            _set_random_state(saved.random)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{self._job.folder}: step {saved.step}'s checkpoint does not fit: {error}.") from None
        self._journal = Journal(self._job.folder / run_folder.METRICS, saved.journal)
        self._step, self._budget = saved.step, state["budget_tokens"]
        self.notes, self.seconds = state["notes"], self.seconds | state["seconds"]
        self._saved_step = saved.step

    def run(self, interruption: Interruption | None = None) -> Ended:
        """Train until the recipe's end, a limit or an interruption, which may be the caller's.

        Raises DataError for a loss that is lost, and ArtifactError.
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
            self._model.train()
        return Ended(reason, self.history, self.seconds, self.notes)

    def _load_trained(self, trained: Mapping[str, Any]) -> None:
        import torch

        shapes = ({name: each.shape for name, each in side.items()} for side in (trained, self._parameters))
        if next(shapes) != next(shapes):
            raise ArtifactError(f"{self._job.folder}: the checkpoint is of an adapter with other layers.")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(trained[name])

    def go_back(self, folder: Path, step: int) -> None:
        """Put the trained tensors of an earlier step's checkpoint in place. Raises ArtifactError if it is damaged."""
        try:
            self._load_trained(checkpoints.load_trained(folder, step))
        except ArtifactError as error:
            raise ArtifactError(
                f"the checkpoint of step {step}, the best one, is damaged: {error} To keep the last step's adapter, "
                "go on with --resume --set training.final=last."
            ) from None

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def _run(self, interruption: Interruption) -> str:
        made, trained = 0, 0  # by this call
        self._validator.interrupted = lambda: (
            self._context.world_size == 1
            and (interruption.caught is not None or self._limits.out_of_time(RESERVE * self.saving_s))
        )
        while True:
            with suppress(Interrupted):  # the validation is made when the run goes on
                self._validate_if_due()
            reason = interruption.name or self._finished() or self._limits.reached(made, trained, self._next_s())
            reason = self._context.broadcast(reason)
            if reason or self._save_is_due():
                self.save()
            if reason:
                return "" if reason == "done" else reason
            stats = self._make_step()
            made, trained = made + 1, trained + stats.tokens

    def _notify(self, what: Callable[[Callback], None]) -> None:
        try:
            for callback in self._callbacks:
                what(callback)
        except Exception:
            self.save()
            raise

    def _finished(self) -> str:
        patience = self._training.patience
        patient = patience is None or self._validator.without_progress(self.history) < patience
        return "" if self._step < self.total and patient else "done"

    def _next_s(self) -> float:
        """Time of the longest thing that may come before the loop looks at the clock again, and of saving after it."""
        last = [stats.step_s for stats in self.history.steps[-20:]]
        step_s = max(last, default=0.0)
        validation_s = self._validator.seconds if self._validates_after(self._step + 1) else 0.0
        return step_s + validation_s + RESERVE * self.saving_s

    def _make_step(self) -> StepStats:
        number = self._step
        rows = self.schedule.rows(number)
        self._set_learning_rate(number)
        begin_s = time.monotonic()
        while True:
            before = _random_state()
            try:
                stats = self._attempt(rows, number, begin_s)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self._context.sharded:  # the others wait for this one's part
                    raise
                self._shrink(rows, error)
            _set_random_state(before)
        self._journal.step(stats)
        self._check_divergence()
        self._step += 1
        self._notify(lambda callback: callback.on_step_end(stats, self.total))
        return stats

    def _attempt(self, rows: Sequence[int], number: int, begin_s: float) -> StepStats:
        """Forward, backward and update. Nothing is changed if forward or backward runs out of memory."""
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        with self._timed("data"):
            own = self._context.own_part(sorted(rows, key=lambda row: -self._lengths[row]))
            cut = self.schedule.micro_batches(own, self._budget)
            batches = [self._forward.batch([self._job.examples[row] for row in batch]) for batch in cut]
        targets = sum(self._job.examples[row].target_tokens for row in rows)
        if targets == 0:
            raise DataError(f"step {number + 1} has no scored token: nothing can be learnt from {self._named(rows)}.")
        with self._timed("step"):
            loss = self._gradient(batches, targets)
            self._scaler.unscale_(self._optimizer)
            parameters = [each for each in self._parameters.values() if each.grad is not None]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._training.max_grad_norm))
            self._check(number, loss, norm, rows)
            self._update(number)
        tokens = sum(batch.tokens for batch in batches), sum(batch.computed_tokens for batch in batches)
        all_tokens, computed_tokens = self._context.all_reduce_sum(*tokens)
        rate = max(group["lr"] for group in self._optimizer.param_groups)
        return StepStats(
            step=number + 1,
            loss_nats_per_token=loss,
            learning_rate=rate,
            grad_norm=norm,
            target_tokens=targets,
            tokens=int(all_tokens),
            padding_share=max(0.0, 1 - all_tokens / computed_tokens),  # a shared prefix makes them fewer
            step_s=time.monotonic() - begin_s,
        )

    def _update(self, number: int) -> None:
        try:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UnsupportedError(  # half of the adapter may be changed: the step cannot be made again
                f"out of memory in the update of step {number + 1}. Lower lora.rank, or take an optimizer that holds "
                "less, as training.optimizer=sgd; what was saved is whole."
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
        """Where weights are spread over processes, all must compute as often as the one with most micro-batches."""
        if not self._context.sharded:
            return
        for _ in range(int(self._context.all_reduce_max(len(batches))) - len(batches)):
            (self._forward.loss(batches[-1], targets) * 0).backward()

    def _check(self, number: int, loss: float, norm: float, rows: Sequence[int]) -> None:
        if not math.isfinite(loss):
            raise DataError(
                f"the loss of step {number + 1} is {loss}: lower training.learning_rate, or look at its rows: "
                f"{self._named(rows)}."
            )
        if number == 0 and norm == 0:
            raise DataError(NO_GRADIENT)
        if not math.isfinite(norm) and not self._scaler.is_enabled():  # a scaler skips such a step by itself
            raise DataError(
                f"the gradient of step {number + 1} is {norm}: lower training.learning_rate, or look at its rows: "
                f"{self._named(rows)}."
            )

    def _check_divergence(self) -> None:
        """A loss that has risen far above its beginning and above guessing among all tokens does not come back."""
        steps = self.history.steps
        if len(steps) < 2 * EARLY_STEPS:
            return
        early, late = (
            sum(stats.loss_nats_per_token for stats in part) / EARLY_STEPS
            for part in (steps[:EARLY_STEPS], steps[-EARLY_STEPS:])
        )
        guessing = math.log(self._model.get_input_embeddings().weight.shape[0])
        if late > max(guessing, early + 1):
            rows = self.schedule.rows(self._step)
            raise DataError(
                f"the loss has exploded: {early:.2f} nats in the first {EARLY_STEPS} steps, {late:.2f} in those up to "
                f"step {self._step + 1}, where guessing gives {guessing:.2f}. Lower training.learning_rate. "
                f"The last step's rows: {self._named(rows)}."
            )

    def _named(self, rows: Sequence[int]) -> str:
        names = self._job.sources(rows[:NAMED_ROWS])
        return ", ".join(names) + (f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else "")

    def _shrink(self, rows: Sequence[int], error: BaseException) -> None:
        """Half the tokens in a micro-batch; raises UnsupportedError if a single row is already too much."""
        self._optimizer.zero_grad(set_to_none=True)
        cut = self.schedule.micro_batches(rows, self._budget)
        if len(cut) == len(rows):
            longest = max(self._lengths[row] for row in rows)
            raise UnsupportedError(
                f"out of memory in step {self._step + 1} with a single row of {longest:,} tokens. Set "
                "training.gradient_checkpointing=on or base.load_in_4bit=true, or lower base.max_tokens."
            ) from error
        largest = max(sum(self._lengths[row] for row in batch) for batch in cut)
        self._budget = min(self._budget, largest) // 2
        self._journal.note(OUT_OF_MEMORY, self._step + 1, batch_tokens=self._budget)
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        release_memory()

    def _set_learning_rate(self, number: int) -> None:
        share = self._rate(number)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def _validates_after(self, step: int) -> bool:
        return bool(self._validator.held_out) and self.schedule.validates_after(step)

    def _validate_if_due(self) -> None:
        validated = bool(self.history.validation) and self.history.validation[-1][0] == self._step
        if self._step == 0 or validated or not self._validates_after(self._step):
            return
        with self._timed("evaluation"):
            report = self._validator.evaluate(self._step, self._journal)
        best = self.history.best
        if best is not None and best[0] == self._step:
            self.save()
        self._notify(report)

    def _save_is_due(self) -> bool:
        every = self._training.checkpoint_steps
        if self._step == 0:
            return False
        if every is not None:
            return self._step % every == 0
        if self._step == 1:  # measures the time it takes, and shows at once a disk that is too small
            return True
        return time.monotonic() - self._saved_s >= self._training.checkpoint_minutes * 60

    def save(self) -> None:
        """Write a checkpoint of the last step and remove those that are not kept."""

        if self._saved_step == self._step or not self._context.is_main:
            return
        begin_s = time.monotonic()
        with self._timed("saving"):
            state = {
                "budget_tokens": self._budget,
                "notes": self.notes,
                "scaler": self._scaler.state_dict(),
                "seconds": self.seconds,
            }
            trained = {name: each.detach().cpu() for name, each in self._parameters.items()}
            optimizer = self._optimizer.state_dict()
            saved = Checkpoint(self._step, trained, optimizer, _random_state(), state, self._journal.told)
            checkpoints.save(self._job.folder, saved, self._job.identity)
            best = self.history.best
            checkpoints.prune(self._job.folder, self._training.keep_checkpoints, best[0] if best else None)
        self._saved_step, self._saved_s = self._step, time.monotonic()
        self.saving_s = max(self.saving_s, self._saved_s - begin_s)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - begin_s


def _random_state() -> dict[str, Any]:
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{place}": state for place, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_random_state(states: dict[str, Any]) -> None:
    import torch

    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for place in range(torch.cuda.device_count()):
            if f"cuda:{place}" in states:  # else the run went on where there are more of them
                torch.cuda.set_rng_state(states[f"cuda:{place}"], place)
