"""Generates one answer: samples tokens, turns them into text, and ends where the answer ends."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gladstone.chat.reasoning_markers import THINK, Markers
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model
from runtime.errors import ListenerError
from runtime.request import Completion, OnEvent, Request, TokenLogprob
from runtime.sampling.sampler import SamplerChain
from runtime.text.detokenizer import Detokenizer
from runtime.text.reasoning_splitter import Piece

if TYPE_CHECKING:
    from runtime.grammars.grammar import Constraint

Logits = npt.NDArray[np.float32]


class Vocabulary:
    """The text of each token of a model, cached. Control tokens that mark reasoning count as text.

    `stop` is a stop string of every answer, "" for none.
    """

    def __init__(self, model: Model, markers: Markers = THINK, stop: str = "") -> None:
        self.model, self.markers = model, markers
        self.stops = (stop,) if stop else ()
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        for text in markers.texts:  # control tokens would otherwise have no text
            for token in model.tokenize(text, parse_special=True):
                if model.is_control(token):
                    self._pieces[token] = model.piece(token, special=True)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; b"" for a control token that does not mark reasoning."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.model.piece(token)
        return piece

    def ends(self, token: int) -> bool:
        """Whether a token ends a turn."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = self.model.ends_generation(token)
        return ends

    def opens_reasoning(self, tokens: Sequence[int]) -> bool:
        """Whether a prompt ends with the opening marker of reasoning."""
        if not self.markers.opening:
            return False
        tail = b"".join(self.model.piece(token, special=True) for token in tokens[-24:])
        return tail.decode("utf-8", "replace").rstrip().endswith(self.markers.opening.rstrip())

    def closing_tokens(self) -> list[int]:
        """The tokens that close the reasoning and lead to the answer."""
        end = self.markers.closing + (self.markers.bridge or "\n\n")
        # after a letter: a SentencePiece vocabulary adds a space at the beginning of a text
        before = self.model.tokenize("a")
        return self.model.tokenize(f"a\n{end}", parse_special=True)[len(before) :]

    def marker_tokens(self, text: str) -> list[int]:
        """The tokens of a marker, as the model generates them."""
        return self.model.tokenize(text, parse_special=True)


@dataclass
class _Times:
    begin_s: float = field(default_factory=time.perf_counter)
    started_s: float = 0.0  # when the prefill began
    read_s: float = 0.0
    first_s: float = 0.0


class Generation:
    """The answer to one request. `tokens` holds the prompt and the answer so far, and is shared with the scheduler.

    `take` samples from logits until the answer has `ended`; `on_event` gets the pieces, and last the completion or an
    error.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        request: Request,
        context_tokens: int,
        on_event: OnEvent,
        constraint: "Constraint | None" = None,
    ) -> None:
        """Raises ConfigError for a bias on a token that the vocabulary does not have."""
        self.request, self.on_event = request, on_event
        # an encoder reads the prompt; the decoder starts with a token of its own
        model = vocabulary.model
        self.tokens = [model.decoder_start] if model.has_encoder else list(request.tokens)
        self.cached = 0
        self.ended = False
        self._vocabulary, self._context_tokens = vocabulary, context_tokens
        self._times = _Times()
        stops = (*request.sampling.stop, *vocabulary.stops)
        opened = vocabulary.opens_reasoning(request.tokens)
        self._stream = Detokenizer(stops, reasoning_opened=opened, markers=vocabulary.markers)
        self._chain = SamplerChain(request.sampling, model, self.tokens)
        self._constraint = constraint
        self._logprobs: list[TokenLogprob] = []
        self._count = self._accepted = self._reasoning_count = 0
        self._forced: list[int] = []

    def open(self) -> None:
        """Call it before the request is queued: it closes reasoning that the prompt opens but the budget forbids."""
        if self.request.reasoning_tokens == 0 and self._stream.in_reasoning:
            self._force(self._vocabulary.closing_tokens())

    def begin(self) -> None:
        """The prefill begins."""
        self._times.started_s = self._times.started_s or time.perf_counter()

    def take(self, context: Context, first_index: int, rows: Logits, drafts: Sequence[int]) -> int:
        """Sample a token from each row of logits (N, V) while `drafts` match; returns how many were accepted.

        Row i follows draft token i - 1. `first_index` is the index in the batch of the token whose logits are the first
        row. Sampled tokens are appended to `tokens`.
        """
        self._times.read_s = self._times.read_s or time.perf_counter()
        accepted = 0
        for index in range(len(rows)):
            token = self._choose(context, first_index + index, rows[index])
            expected = len(self.tokens) + 1
            self._write(token)
            is_drafted = index < len(drafts) and drafts[index] == token
            if self.ended or not is_drafted or len(self.tokens) != expected or self.tokens[-1] != token:
                break
            accepted += 1
        self._accepted += accepted
        return accepted

    def write(self, token: int) -> None:
        """Append a token that was chosen elsewhere, as by a beam search."""
        self._times.read_s = self._times.read_s or time.perf_counter()
        self._write(token)

    def end(self, stop_reason: str) -> None:
        """End the answer: send the text that was held back, and the completion."""
        if self.ended:
            return
        self.ended = True
        self.close()
        try:
            self._send(self._stream.flush())
        except ListenerError as error:
            self.on_event(error)
            return
        if self._stream.stopped and stop_reason != "cancelled":
            stop_reason = "stop"
        self.on_event(self._completion(stop_reason))

    def fail(self, error: BaseException) -> None:
        """End the answer with an error."""
        if not self.ended:
            self.ended = True
            self.close()
            self.on_event(error)

    def close(self) -> None:
        """Free the samplers. Closing twice is harmless."""
        self._chain.close()

    def _choose(self, context: Context, index: int, logits: Logits) -> int:
        count = self.request.sampling.logprobs
        raw = logits.copy() if count is not None else logits
        constraint = self._constraint if not self._stream.in_reasoning else None
        marker = self._upcoming_marker(logits) if constraint is not None else []
        if marker:
            token, *self._forced = marker
            self._chain.accept(token)
        else:
            if constraint is not None:
                constraint.mask(logits)
            token = self._chain.sample(context, index, logits)
            if constraint is not None:
                constraint.accept(token)
        if count is not None:
            self._logprobs.append(_logprob(raw, token, count))
        self._times.first_s = self._times.first_s or time.perf_counter()
        return token

    def _upcoming_marker(self, logits: Logits) -> list[int]:
        """The tokens of the reasoning marker that the model is about to generate; the grammar does not cover them."""
        likeliest = int(logits.argmax())
        markers = (self._vocabulary.marker_tokens(text) for text in self._stream.splitter.awaited)
        return next((tokens for tokens in markers if tokens[:1] == [likeliest]), [])

    def _write(self, token: int) -> None:
        if self._vocabulary.ends(token):
            self._end_turn()
            return
        self._append(token)
        if self._forced:
            forced, self._forced = self._forced, []
            self._force(forced)
        budget = self.request.reasoning_tokens
        used_up = budget is not None and self._stream.in_reasoning and self._reasoning_count >= budget
        if used_up and not self.ended and not self._stream.splitter.closing:
            self._force(self._vocabulary.closing_tokens())
        if not self.ended and self._constraint is not None and self._constraint.finished:
            self.end("end")

    def _end_turn(self) -> None:
        """The model ended its turn. If that was inside reasoning and an answer is required, close the reasoning."""
        requires_answer = self._constraint is not None or self.request.reasoning_tokens is not None
        if self._stream.in_reasoning and requires_answer:
            self._force(self._vocabulary.closing_tokens())
        else:
            self.end("end")

    def _append(self, token: int) -> None:
        self._count += 1
        was_reasoning = self._stream.in_reasoning
        self._send(self._stream.feed(self._vocabulary.piece(token)))
        self._reasoning_count += was_reasoning or self._stream.in_reasoning
        if self._stream.stopped:
            self.end("stop")
        elif self._count >= self.request.sampling.max_tokens:
            self.end("length")
        elif len(self.tokens) >= self._context_tokens:
            self.end("context")
        else:
            self.tokens.append(token)

    def _force(self, tokens: list[int]) -> None:
        """Append tokens that the model does not choose."""
        for token in tokens:
            if not self.ended:
                self._chain.accept(token)
                self._append(token)

    def _send(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.on_event(piece)

    def _completion(self, stop_reason: str) -> Completion:
        end_s, times = time.perf_counter(), self._times
        started_s = times.started_s or end_s
        first_s = times.first_s or end_s
        return Completion(
            text=self._stream.text,
            reasoning=self._stream.reasoning,
            stop_reason=stop_reason,
            prompt_tokens=len(self.request.tokens),
            cached_tokens=self.cached,
            generated_tokens=self._count,
            reasoning_tokens=self._reasoning_count,
            accepted_draft_tokens=self._accepted,
            queued_s=started_s - times.begin_s,
            prefill_s=(times.read_s or end_s) - started_s,
            decode_s=end_s - first_s,
            first_token_s=first_s - times.begin_s,
            complete=self._is_complete(stop_reason),
            logprobs=tuple(self._logprobs) if self.request.sampling.logprobs is not None else None,
        )

    def _is_complete(self, stop_reason: str) -> bool:
        if self._constraint is None:
            return stop_reason in ("end", "stop")
        # a stop string removes text that the grammar has accepted
        return stop_reason != "stop" and not self._stream.in_reasoning and self._constraint.may_end


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities (…, V) float64 of logits (…, V)."""
    shifted = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def _logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    logprobs = log_softmax(logits)
    best = np.argpartition(-logprobs, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    top = tuple((int(other), float(logprobs[other])) for other in best)
    return TokenLogprob(token, float(logprobs[token]), top)
