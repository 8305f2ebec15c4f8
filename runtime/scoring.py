"""How probable given texts are: logits and losses by teacher forcing, always from an empty cache."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.scheduling.admission import Admission
from runtime.scheduling.generation import log_softmax
from runtime.scheduling.jobs import Runner, ScoreJob
from runtime.scheduling.sequences import Task

Logits = npt.NDArray[np.float32]
SCORED_TOGETHER = 256  # continuations of a prompt that is evaluated once


@dataclass(frozen=True)
class AnswerLoss:
    """-log p of an answer in nats, summed over its tokens, the end of the turn included."""

    nats: float
    tokens: int


class Scorer:
    """Scores texts with the engine's runner, under its `adapters`. Any thread may use it."""

    def __init__(self, runner: Runner, admission: Admission, adapters: tuple[float, ...]) -> None:
        self._runner, self._admission, self._adapters = runner, admission, adapters

    def losses(self, prompt: list[int], continuations: Sequence[list[int]]) -> list[AnswerLoss]:
        """The loss of each continuation of the prompt, which is evaluated once for up to 256 of them."""
        losses = [_Loss(continuation) for continuation in continuations]
        together = min(SCORED_TOGETHER, self._admission.limit)
        for begin in range(0, len(losses), together):
            group = object()
            ends = [
                self._submit(prompt + loss.continuation[:-1], len(prompt) - 1, loss.consume, group)
                for loss in losses[begin : begin + together]
            ]
            for end in ends:
                end.result()
        return [AnswerLoss(loss.nats, len(loss.continuation)) for loss in losses]

    def logits(self, tokens: list[int], consume: Callable[[int, Logits], None]) -> None:
        """Call `consume(position, rows)` with the logits of all tokens, in order, rows (N, V) float32 at a time."""
        self._submit(tokens, 0, consume, object()).result()

    def _submit(
        self, tokens: list[int], first: int, consume: Callable[[int, Logits], None], group: object
    ) -> "Future[None]":
        """Score the tokens from position `first` on."""
        future: Future[None] = Future()

        def done(error: BaseException | None) -> None:
            self._admission.leave()
            future.set_exception(error) if error else future.set_result(None)

        job = ScoreJob(Task(tokens, 0, self._adapters, outputs_from=first, group=group), consume, done)
        self._admission.enter(lambda: self._runner.submit(job), job.fail)
        return future


class _Loss:
    """Sums -log p of the tokens of a continuation over the logits that predict them."""

    def __init__(self, continuation: list[int]) -> None:
        self.continuation = continuation
        self.nats = 0.0

    def consume(self, index: int, rows: Logits) -> None:
        """Rows (N, V) whose first predicts the token `index` of the continuation."""
        targets = self.continuation[index : index + len(rows)]
        self.nats -= float(log_softmax(rows)[np.arange(len(targets)), targets].sum())
