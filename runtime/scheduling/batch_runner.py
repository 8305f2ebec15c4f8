"""Many requests in one context: the scheduler decides, llama.cpp evaluates, each request takes its outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gladstone.errors import GladstoneError, UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.sampling.speculative import Guesser
from runtime.scheduling.generation import Writer
from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.sequences import Limits, Part, Step, Task

Logits = npt.NDArray[np.float32]
ONE = (True,)


class Job(Protocol):
    """What a task is evaluated for."""

    @property
    def ended(self) -> bool:
        """True once nothing more of it is wanted."""

    def begin(self) -> None:
        """Its turn has come."""

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        """Use the outputs of a part; returns how many of its guesses were right."""

    def end(self, stop_reason: str) -> None:
        """Nothing more will come."""

    def fail(self, error: BaseException) -> None:
        """Nothing more will come, because of this."""

    def close(self) -> None:
        """It is over: give back what it used."""


class WritingJob:
    """An answer that is written token by token."""

    def __init__(self, writer: Writer, task: Task, guesser: Guesser | None = None) -> None:
        self.writer, self._task, self._guesser = writer, task, guesser
        self.guesses = guesser is not None
        self.begun = False

    @property
    def ended(self) -> bool:
        return self.writer.ended

    def begin(self) -> None:
        self.begun = True
        self.writer.begin()
        self.writer.cached = self._task.cached

    def guess(self) -> None:
        """Put guesses of what follows the last token behind it."""
        if self._guesser is not None and self._task.pending == 1:
            self._task.drafts = self._guesser.guess(self.writer.tokens)

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        drafts = part.task.drafts[: part.drafts]
        kept = self.writer.take(context, first_index, rows, drafts)
        if self._guesser is not None and drafts:
            self._guesser.learn(len(drafts), kept)
        return kept

    def end(self, stop_reason: str) -> None:
        self.writer.end(stop_reason)

    def fail(self, error: BaseException) -> None:
        self.writer.fail(error)

    def close(self) -> None:
        if self._guesser is not None:
            self._guesser.close()


@dataclass(eq=False)
class ReadingJob:
    """Outputs of a text that is there already, handed on as they come.

    `consume` gets the position of the first row and the rows (N, V), a view that the next batch overwrites.
    """

    task: Task
    consume: Callable[[int, Logits], None]
    done: Callable[[BaseException | None], None]
    ended: bool = False
    _next: int = 0

    def begin(self) -> None:
        self._next = self._next or self.task.outputs_from or 0

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        first = part.start + part.count - part.rows
        fresh = max(0, self._next - first)  # a task that was put out is read again
        if fresh < len(rows):
            self.consume(first + fresh, rows[fresh:])
            self._next = first + len(rows)
        if self._next >= len(self.task.tokens):
            self.end("end")
        return 0

    def end(self, stop_reason: str) -> None:
        if not self.ended:
            self.ended = True
            self.done(None)

    def fail(self, error: BaseException) -> None:
        if not self.ended:
            self.ended = True
            self.done(error)

    def close(self) -> None:
        pass


class BatchRunner:
    """Evaluates steps until nothing is left. Use it from one thread, but `interrupt`."""

    def __init__(self, context: Context, limits: Limits) -> None:
        self.context = context
        self.scheduler = Scheduler(_Cache(context), limits)
        self._jobs: dict[Task, Job] = {}
        self._in_flight: Sequence[Task] = ()
        self.evaluated_tokens = 0  # since the engine began

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return self.scheduler.idle

    def submit(self, task: Task, job: Job) -> None:
        """Raises QueueFullError, and ValueError for a task that can never fit."""
        self.scheduler.submit(task)
        self._jobs[task] = job

    def cancel(self, task: Task) -> None:
        """End a task, wherever it is."""
        if task in self._jobs:
            self._leave(task).end("cancelled")

    def interrupt(self, tasks: Sequence[Task]) -> None:
        """Break off the evaluation under way if it is for these tasks alone. Any thread may call it."""
        if self._in_flight and all(task in tasks for task in self._in_flight):
            self.context.abort()

    def forget(self) -> None:
        """Empty the cache of all that nobody works with."""
        self.scheduler.forget()

    def fail_all(self, error: BaseException) -> None:
        """End every task with an error."""
        for task in list(self._jobs):
            self._leave(task).fail(error)

    def step(self) -> None:
        """Evaluate one batch and hand its outputs on."""
        if self._step_alone():
            return
        for task in self.scheduler.running:
            job = self._jobs[task]
            if isinstance(job, WritingJob):
                job.guess()
        step = self.scheduler.plan()
        if step is None:
            return
        for part in step.parts:
            self._jobs[part.task].begin()
        try:
            whole = self._evaluate(step)
        except UnsupportedError as error:
            self.scheduler.undo(step)
            for part in step.parts:
                self._leave(part.task).fail(error)
            return
        if whole:
            self._hand_on(step)
        else:
            self.scheduler.undo(step)

    def _step_alone(self) -> bool:
        """The same for somebody who writes alone, the way of nearly every step on a laptop; False if it is not that."""
        task = self.scheduler.writes_alone()
        job = self._jobs[task] if task is not None else None
        if task is None or task.sequence is None or not isinstance(job, WritingJob) or job.guesses or not job.begun:
            return False
        self.context.lay_over(task.adapters)
        self._in_flight = (task,)
        try:
            whole = self.context.evaluate((task.tokens[-1],), (task.evaluated,), (task.sequence,), ONE)
        except UnsupportedError as error:
            self._leave(task).fail(error)
            return True
        finally:
            self._in_flight = ()
            self.context.resume()
        if not whole:
            self.scheduler.cut(task)
            return True
        self.evaluated_tokens += 1
        self.scheduler.append(task)
        try:
            job.writer.take(self.context, 0, self.context.all_logits(1), ())
        except GladstoneError as error:
            job.fail(error)
        if job.ended:
            self._leave(task)
        return True

    def _evaluate(self, step: Step) -> bool:
        self.context.lay_over(step.adapters)
        self._in_flight = [part.task for part in step.parts]
        try:
            whole = self.context.evaluate(step.tokens, step.positions, step.sequences, step.wanted)
        finally:
            self._in_flight = ()
            self.context.resume()
        self.evaluated_tokens += len(step.tokens) if whole else 0
        return whole

    def _hand_on(self, step: Step) -> None:
        rows = self.context.all_logits(step.outputs) if step.outputs else np.zeros((0, 0), np.float32)
        for part in step.parts:
            job, kept = self._jobs[part.task], 0
            if part.rows:
                first_index = part.offset + part.count - part.rows
                try:
                    kept = job.take(self.context, first_index, rows[part.first_row : part.first_row + part.rows], part)
                except GladstoneError as error:
                    job.fail(error)
            self.scheduler.advance(part, kept)
            if job.ended:
                self._leave(part.task)

    def _leave(self, task: Task) -> Job:
        job = self._jobs.pop(task)
        self.scheduler.finish(task)
        job.close()
        return job


class _Cache:
    """The scheduler's view of a context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def share(self, source: int, target: int, count: int) -> None:
        self._context.share(source, target, count)

    def cut(self, sequence: int, length: int) -> int:
        try:
            self._context.forget(length, sequence=sequence)
        except UnsupportedError:  # a recurrent state is empty after that
            return 0
        return length

    def clear(self) -> None:
        self._context.clear()
