"""The runner of encoder–decoder models: one request after the other, since a context holds one encoder's output."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gladstone.errors import GladstoneError, UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.request import Request
from runtime.sampling.beam_search import Beams, banned_by_ngrams
from runtime.sampling.encoder_decoder import EncoderDecoder
from runtime.scheduling.jobs import GenerateJob, ScoreJob
from runtime.scheduling.sequences import Task

Logits = npt.NDArray[np.float32]
SCORED_AT_ONCE = 64  # rows of logits: of a vocabulary of 150,000 they are 38 MB


class EncoderDecoderRunner:
    """The `Runner` of encoder–decoder models: the first waiting job of the highest priority runs, alone."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.evaluated_tokens = 0
        self._model = EncoderDecoder(context)
        self._waiting: list[GenerateJob | ScoreJob] = []
        self._current: GenerateJob | None = None
        self._logits: Logits | None = None  # (V,) of the answer's next token
        self._cancelled = False

    @property
    def idle(self) -> bool:
        return self._current is None and not self._waiting

    def check(self, request: Request) -> None:
        if Beams.of(request.sampling) is not None and request.grammar is not None:
            raise UnsupportedError("a grammar and beams at a time: take one of them.")

    def submit(self, job: GenerateJob | ScoreJob) -> None:
        index = sum(other.task.priority >= job.task.priority for other in self._waiting)
        self._waiting.insert(index, job)

    def cancel(self, task: Task) -> None:
        for job in self._waiting:
            if job.task is task:
                self._waiting.remove(job)
                job.cancel()
                return
        if self._current is not None and self._current.task is task:
            current, self._current = self._current, None
            current.cancel()

    def interrupt(self, tasks: Sequence[Task]) -> None:
        current = self._current
        if current is not None and current.task in tasks:
            self._cancelled = True
            self.context.abort()

    def evict_all(self) -> None:
        """Nothing stays cached from one request to the next."""

    def fail_all(self, error: BaseException) -> None:
        jobs, self._waiting = self._waiting, []
        if self._current is not None:
            jobs.append(self._current)
            self._current = None
        for job in jobs:
            job.fail(error)

    def step(self) -> None:
        """Encode a prompt, decode one token, or score one text."""
        job: GenerateJob | ScoreJob | None = self._current
        try:
            if self._current is not None:
                self._decode(self._current)
            elif self._waiting:
                job = self._waiting.pop(0)
                self._begin(job)
        except GladstoneError as error:
            self._current = None
            if job is not None:
                job.fail(error)
        finally:
            self.context.resume()

    def _begin(self, job: GenerateJob | ScoreJob) -> None:
        self._cancelled = False
        if isinstance(job, ScoreJob):
            self._score(job)
            return
        self._current = job
        job.begin()
        beams = Beams.of(job.generation.request.sampling)
        if beams is not None:
            self._search(job, beams)
            return
        prompt = job.generation.request.tokens
        self._logits = self._model.begin(prompt)
        self.evaluated_tokens += len(prompt) + 1

    def _decode(self, job: GenerateJob) -> None:
        if self._logits is None:  # aborted: the cancellation that aborted it is on its way
            job.cancel()
        else:
            size = job.generation.request.sampling.no_repeat_ngram
            if size:
                self._logits[banned_by_ngrams(job.generation.tokens, size)] = -np.inf
            job.generation.take(self.context, -1, self._logits[None], ())
        if job.ended:
            self._current = None
            return
        self._logits = self._model.step(job.generation.tokens[-1])
        self.evaluated_tokens += 1

    def _search(self, job: GenerateJob, beams: Beams) -> None:
        request = job.generation.request
        result = self._model.search(request.tokens, beams, request.sampling.max_tokens, lambda: self._cancelled)
        self.evaluated_tokens += len(request.tokens) + result.steps * beams.count
        best = result.hypotheses[0].tokens if result.hypotheses else ()
        for token in best:
            if not job.ended:
                job.generation.write(token)
        job.generation.end(result.stop_reason)
        self._current = None

    def _score(self, job: ScoreJob) -> None:
        """Encode the prompt, and let the decoder read the tokens that follow it, for their logits."""
        prompt, answer = job.task.tokens[: job.first + 1], job.task.tokens[job.first + 1 :]
        rows = self._model.begin(prompt)
        self.evaluated_tokens += len(prompt) + 1
        index = 0
        while rows is not None:
            rows = rows.reshape(-1, rows.shape[-1])
            job.consume(index, rows)
            index += len(rows)
            rest = answer[index - 1 : index - 1 + SCORED_AT_ONCE]
            if not rest:
                job.end()
                return
            rows = self._model.extend(rest)
            self.evaluated_tokens += len(rest)
        raise UnsupportedError("the engine was closed.")
