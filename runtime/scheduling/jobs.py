"""What the engine evaluates, an answer to generate or a text to score, and the seam to the runners that do it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gladstone.errors import UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.request import Request
from runtime.sampling.speculative import Drafter
from runtime.scheduling.generation import Generation
from runtime.scheduling.sequences import Part, Task

Logits = npt.NDArray[np.float32]


class GenerateJob:
    """An answer that is decoded token by token. `task.tokens` are those of the writer."""

    def __init__(self, generation: Generation, task: Task, drafter: Drafter | None = None) -> None:
        self.generation, self.task, self.drafter = generation, task, drafter
        self.begun = False

    @property
    def ended(self) -> bool:
        return self.generation.ended

    def begin(self) -> None:
        self.begun = True
        self.generation.begin()
        self.generation.cached = self.task.cached

    def propose(self) -> list[int]:
        return self.drafter.propose(self.generation.tokens) if self.drafter is not None else []

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        draft = part.slot.draft[: part.draft]
        accepted = self.generation.take(context, first_index, rows, draft)
        if self.drafter is not None and draft:
            self.drafter.record(len(draft), accepted)
        return accepted

    def cancel(self) -> None:
        self.generation.end("cancelled")

    def fail(self, error: BaseException) -> None:
        self.generation.fail(error)

    def close(self) -> None:
        if self.drafter is not None:
            self.drafter.close()


@dataclass(eq=False)
class ScoreJob:
    """The logits of a given text (teacher forcing): of `task.tokens` from the position `task.outputs_from` on.

    `consume` gets the index of the first row, counted from that position, and the rows (N, V) float32, a view that the
    next evaluation overwrites. `done` is called once, with the error if there was one.
    """

    task: Task
    consume: Callable[[int, Logits], None]
    done: Callable[[BaseException | None], None]
    ended: bool = False
    _consumed: int = 0  # rows

    @property
    def first(self) -> int:
        """The position of the first row: that of the prompt's last token."""
        return self.task.outputs_from or 0

    def begin(self) -> None:
        pass

    def propose(self) -> list[int]:
        return []

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        index = part.start + part.count - part.rows - self.first
        fresh = max(0, self._consumed - index)  # a preempted task is evaluated again
        if fresh < len(rows):
            self.consume(index + fresh, rows[fresh:])
            self._consumed = index + len(rows)
        if self._consumed >= len(self.task.tokens) - self.first:
            self.end()
        return 0

    def end(self) -> None:
        """All rows were consumed."""
        if not self.ended:
            self.ended = True
            self.done(None)

    def cancel(self) -> None:
        self.fail(UnsupportedError("the scoring was cancelled."))

    def fail(self, error: BaseException) -> None:
        if not self.ended:
            self.ended = True
            self.done(error)

    def close(self) -> None:
        pass


class Job(Protocol):
    """What `GenerateJob` and `ScoreJob` have in common."""

    task: Task

    @property
    def ended(self) -> bool:
        """True once nothing more has to be evaluated."""

    def begin(self) -> None:
        """The first evaluation for the job follows."""

    def propose(self) -> list[int]:
        """Draft tokens to verify with the last token."""

    def take(self, context: Context, first_index: int, rows: Logits, part: Part) -> int:
        """Use the output rows (N, V) of a part; returns how many of its draft tokens were accepted.

        `first_index` is the index in the batch of the token whose output is the first row.
        """

    def cancel(self) -> None:
        """End the job as cancelled."""

    def fail(self, error: BaseException) -> None:
        """End the job with an error."""

    def close(self) -> None:
        """Free what the job used."""


class Runner(Protocol):
    """Evaluates jobs step by step. Use it from one thread, but `check` and `interrupt`, which any thread may call."""

    evaluated_tokens: int  # since the engine started

    @property
    def idle(self) -> bool:
        """True if no job waits or runs."""

    def check(self, request: Request) -> None:
        """Raises UnsupportedError or ConfigError for a request that the runner cannot serve."""

    def submit(self, job: GenerateJob | ScoreJob) -> None:
        """Queue a job. Raises QueueFullError, and ValueError for one that can never fit."""

    def step(self) -> None:
        """Evaluate one batch, and let the jobs take its outputs."""

    def cancel(self, task: Task) -> None:
        """End the job of a task, whether it waits or runs."""

    def interrupt(self, tasks: Sequence[Task]) -> None:
        """Abort the evaluation under way if it is for these tasks alone."""

    def evict_all(self) -> None:
        """Evict every prefix that no running job holds."""

    def fail_all(self, error: BaseException) -> None:
        """End every job with an error."""
