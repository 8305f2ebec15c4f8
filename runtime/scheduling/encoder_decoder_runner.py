"""Encoder–decoder models: one request after the other, since a context holds what one encoder read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gladstone.errors import GladstoneError, UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.sampling.beam_search import Beams, banned_by_ngrams
from runtime.sampling.encoder_decoder import Seq2Seq
from runtime.scheduling.generation import Writer
from runtime.scheduling.sequences import Task

Logits = npt.NDArray[np.float32]
SCORED_AT_ONCE = 64  # rows of logits


@dataclass(eq=False)
class Reply:
    """A request and the answer to it. Without `beams` it is written token by token."""

    task: Task
    writer: Writer
    prompt: list[int]
    beams: Beams | None = None


@dataclass(eq=False)
class Teaching:
    """What the model gives for an answer that is there already: `consume` gets the logits (N, V) of its tokens."""

    task: Task
    prompt: list[int]
    answer: list[int]
    consume: Callable[[int, Logits], None]
    done: Callable[[BaseException | None], None]


class SerialRunner:
    """Does what `BatchRunner` does, for one request at a time. Use it from one thread, but `interrupt`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.evaluated_tokens = 0
        self._model = Seq2Seq(context)
        self._waiting: list[Reply | Teaching] = []
        self._current: Reply | None = None
        self._logits: Logits | None = None
        self._cancelled = False

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return self._current is None and not self._waiting

    def submit(self, work: Reply | Teaching) -> None:
        """Let it wait for its turn; a higher priority goes first."""
        place = sum(other.task.priority >= work.task.priority for other in self._waiting)
        self._waiting.insert(place, work)

    def cancel(self, task: Task) -> None:
        """End a request, wherever it is."""
        for work in self._waiting:
            if work.task is task and isinstance(work, Reply):
                self._waiting.remove(work)
                work.writer.end("cancelled")
                return
        if self._current is not None and self._current.task is task:
            current, self._current = self._current, None
            current.writer.end("cancelled")

    def interrupt(self, tasks: Sequence[Task]) -> None:
        """Break off the evaluation under way if it is for one of these. Any thread may call it."""
        current = self._current
        if current is not None and current.task in tasks:
            self._cancelled = True
            self.context.abort()

    def fail_all(self, error: BaseException) -> None:
        """End everything with an error."""
        waiting, self._waiting = self._waiting, []
        if self._current is not None:
            waiting.append(self._current)
            self._current = None
        for work in waiting:
            _fail(work, error)

    def forget(self) -> None:
        """Nothing is kept from one request to the next."""

    def step(self) -> None:
        """Read a prompt, or write one token."""
        work: Reply | Teaching | None = self._current
        try:
            if self._current is not None:
                self._write(self._current)
            elif self._waiting:
                work = self._waiting.pop(0)
                self._begin(work)
        except GladstoneError as error:
            self._current = None
            if work is not None:
                _fail(work, error)
        finally:
            self.context.resume()

    def _begin(self, work: Reply | Teaching) -> None:
        self._cancelled = False
        if isinstance(work, Teaching):
            self._teach(work)
            return
        self._current = work
        work.writer.begin()
        if work.beams is not None:
            self._search(work, work.beams)
            return
        self._logits = self._model.begin(work.prompt)
        self.evaluated_tokens += len(work.prompt) + 1

    def _write(self, work: Reply) -> None:
        if self._logits is None:  # broken off: what ends it is on its way
            work.writer.end("cancelled")
        else:
            size = work.writer.request.sampling.no_repeat_ngram
            if size:
                self._logits[banned_by_ngrams(work.writer.tokens, size)] = -np.inf
            work.writer.take(self.context, -1, self._logits[None], ())
        if work.writer.ended:
            self._current = None
            return
        self._logits = self._model.step(work.writer.tokens[-1])
        self.evaluated_tokens += 1

    def _search(self, work: Reply, beams: Beams) -> None:
        found = self._model.search(work.prompt, beams, work.writer.request.sampling.max_tokens, lambda: self._cancelled)
        self.evaluated_tokens += len(work.prompt) + found.steps * beams.count
        best = found.hypotheses[0].tokens if found.hypotheses else ()
        for token in best:
            if not work.writer.ended:
                work.writer.write(token)
        work.writer.end(found.stop_reason)
        self._current = None

    def _teach(self, work: Teaching) -> None:
        rows = self._model.begin(work.prompt)
        place = 0
        while rows is not None:
            rows = rows.reshape(-1, rows.shape[-1])
            work.consume(place, rows)
            place += len(rows)
            rest = work.answer[place - 1 : place - 1 + SCORED_AT_ONCE]
            if not rest:
                work.done(None)
                return
            rows = self._model.extend(rest)
        raise UnsupportedError("the engine was closed.")


def _fail(work: Reply | Teaching, error: BaseException) -> None:
    if isinstance(work, Reply):
        work.writer.fail(error)
    else:
        work.done(error)
