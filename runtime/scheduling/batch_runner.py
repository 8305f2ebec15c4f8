"""Many requests in one context: the scheduler plans a batch, llama.cpp evaluates it, each job takes its outputs."""

from collections.abc import Sequence

import numpy as np

from gladstone.errors import GladstoneError, UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.request import Request
from runtime.scheduling.jobs import GenerateJob, Job, ScoreJob
from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.sequences import Limits, Slot, Step, Task

ONE = (True,)


class BatchRunner:
    """The `Runner` of decoder-only models: requests run together, by continuous batching."""

    def __init__(self, context: Context, limits: Limits) -> None:
        self.context = context
        self.scheduler = Scheduler(_ContextCache(context), limits)
        self.evaluated_tokens = 0
        self._jobs: dict[Task, Job] = {}
        self._in_flight: Sequence[Task] = ()

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    def check(self, request: Request) -> None:
        if request.sampling.beams > 1 or request.sampling.no_repeat_ngram:
            raise UnsupportedError(
                f"{self.context.model.path.name} has no encoder: beams and no_repeat_ngram are for models as T5. "
                "Take a repeat penalty or DRY against repetitions."
            )

    def submit(self, job: GenerateJob | ScoreJob) -> None:
        self.scheduler.submit(job.task)
        self._jobs[job.task] = job

    def cancel(self, task: Task) -> None:
        if task in self._jobs:
            self._remove(task).cancel()

    def interrupt(self, tasks: Sequence[Task]) -> None:
        if self._in_flight and all(task in tasks for task in self._in_flight):
            self.context.abort()

    def evict_all(self) -> None:
        self.scheduler.evict_all()

    def fail_all(self, error: BaseException) -> None:
        for task in list(self._jobs):
            self._remove(task).fail(error)

    def step(self) -> None:
        if self._step_alone():
            return
        for slot in self.scheduler.running:
            if slot.pending == 1:
                slot.draft = self._jobs[slot.task].propose()
        step = self.scheduler.plan()
        if step is None:
            return
        for part in step.parts:
            self._jobs[part.slot.task].begin()
        try:
            completed = self._evaluate(step)
        except UnsupportedError as error:
            self.scheduler.roll_back(step)
            for part in step.parts:
                self._remove(part.slot.task).fail(error)
            return
        if completed:
            self._distribute(step)
        else:
            self.scheduler.roll_back(step)

    def _step_alone(self) -> bool:
        """A shorter way to the same for one token of the only request, nearly every step on a laptop.

        False if the next step is another.
        """
        slot = self.scheduler.decodes_alone()
        job = self._jobs[slot.task] if slot is not None else None
        if slot is None or not isinstance(job, GenerateJob) or job.drafter is not None or not job.begun:
            return False
        try:
            completed = self._evaluate_one(slot)
        except UnsupportedError as error:
            self._remove(slot.task).fail(error)
            return True
        if not completed:
            self.scheduler.truncate(slot)
            return True
        self.evaluated_tokens += 1
        self.scheduler.append(slot)
        try:
            job.generation.take(self.context, 0, self.context.all_logits(1), ())
        except GladstoneError as error:
            job.fail(error)
        if job.ended:
            self._remove(slot.task)
        return True

    def _evaluate_one(self, slot: Slot) -> bool:
        """Evaluate the last token of a slot; False if that was aborted."""
        self.context.set_adapters(slot.task.adapters)
        self._in_flight = (slot.task,)
        try:
            return self.context.evaluate((slot.task.tokens[-1],), (slot.evaluated,), (slot.sequence,), ONE)
        finally:
            self._in_flight = ()
            self.context.resume()

    def _evaluate(self, step: Step) -> bool:
        """Evaluate a batch; False if that was aborted."""
        self.context.set_adapters(step.adapters)
        self._in_flight = [part.slot.task for part in step.parts]
        try:
            completed = self.context.evaluate(step.tokens, step.positions, step.sequences, step.is_output)
        finally:
            self._in_flight = ()
            self.context.resume()
        self.evaluated_tokens += len(step.tokens) if completed else 0
        return completed

    def _distribute(self, step: Step) -> None:
        """Let each job take its rows of the outputs."""
        rows = self.context.all_logits(step.outputs) if step.outputs else np.zeros((0, 0), np.float32)
        for part in step.parts:
            job, accepted = self._jobs[part.slot.task], 0
            if part.rows:
                first_index, end = part.offset + part.count - part.rows, part.first_row + part.rows
                try:
                    accepted = job.take(self.context, first_index, rows[part.first_row : end], part)
                except GladstoneError as error:
                    job.fail(error)
            self.scheduler.advance(part, accepted)
            if job.ended:
                self._remove(part.slot.task)

    def _remove(self, task: Task) -> Job:
        job = self._jobs.pop(task)
        self.scheduler.finish(task)
        job.close()
        return job


class _ContextCache:
    """The `KVCache` of a context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def share(self, source: int, target: int, count: int) -> None:
        self._context.share(source, target, count)

    def truncate(self, sequence: int, length: int) -> int:
        try:
            self._context.forget(length, sequence=sequence)
        except UnsupportedError:  # a recurrent state is empty after that
            return 0
        return length

    def clear(self) -> None:
        self._context.clear()
