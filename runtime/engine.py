"""The engine under chat, ask and bench: one model, one context, one conversation at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gladstone.chat import CHAT_CONTEXT_TOKENS, Message
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.llama import Context, Model
from gladstone.lora import Lora
from runtime.prompt import load_template, prompt_tokens, scored_tokens
from runtime.sampler import SamplerChain, Sampling
from runtime.text import THINK_CLOSE, THINK_OPEN, Piece, TextStream

__all__ = ["AnswerLoss", "Completion", "ContextFullError", "Engine", "Piece", "Sampling"]

SCORING_BATCH_TOKENS = 64  # logits of every token are kept: 64 of a vocabulary of 150,000 are 38 MB


class ContextFullError(DataError):
    """A prompt that leaves no room for an answer."""


@dataclass(frozen=True)
class Completion:
    """An answer and what it took.

    `stop_reason` is "end" (the model ended its turn), "stop" (a stop string), "length" (max_tokens), "context" (the
    context is full) or "cancelled". `generated_tokens` are the tokens of the text, without the one that ends the turn.
    `prefill_s` is the time for the prompt, `first_token_s` until the first token was chosen, `decode_s` the time after
    that, for the other tokens.
    """

    text: str
    reasoning: str | None
    stop_reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    first_token_s: float


@dataclass(frozen=True)
class AnswerLoss:
    """-log p of an answer, summed over its tokens, the end of the turn included."""

    nats: float
    tokens: int


class Engine:
    """A model ready to answer. Close it, or use it in a `with` block.

    A KeyboardInterrupt (or any exception of a callback) may leave `complete` at any point: the engine stays usable.
    """

    def __init__(
        self,
        path: Path,
        *,
        context_tokens: int | None = None,
        threads: int | None = None,
        loras: Sequence[Lora] = (),
    ) -> None:
        """Adapters are laid over the model.

        The context is as large as the model was trained for, but 4,096 tokens unless more is asked for. Raises
        ArtifactError for a file that is no usable chat model, ConfigError for sizes that cannot be.
        """
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}, expected 1 or more.")
        begin_s = time.perf_counter()
        self.model = Model(path, loras=loras)
        try:
            self.template = load_template(self.model)
            self.context_tokens = _context_size(self.model, context_tokens)
            self.context = Context(self.model, self.context_tokens, threads=threads)
        except BaseException:
            self.model.close()
            raise
        self.load_s = time.perf_counter() - begin_s
        self._evaluated: list[int] = []  # what the cache surely holds; it may hold more after an interruption
        self._hidden_markers = _hidden_markers(self.model)

    def close(self) -> None:
        """Free context and model. Closing twice is harmless."""
        self.context.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def used_tokens(self) -> int:
        """Tokens of the last conversation that the context holds."""
        return len(self._evaluated)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The turns up to where the answer begins; text of control tokens inside a message stays text."""
        return prompt_tokens(self.model, self.template, messages)

    def complete(
        self,
        tokens: list[int],
        sampling: Sampling,
        on_piece: Callable[[Piece], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """Continue the tokens. `cancelled` is asked before every batch and every token.

        Raises ContextFullError if the prompt and one token of an answer do not fit the context.
        """
        self._check_room(len(tokens), answer_tokens=1)
        begin_s = time.perf_counter()
        rest, cached = self._take_up(tokens)
        stream = TextStream(sampling.stop, reasoning_opened=self._opens_reasoning(tokens))
        answer = _Answer(self, stream, on_piece or (lambda _piece: None))
        stop_reason = "cancelled"
        with SamplerChain(sampling, self.model.vocab_size, tokens) as chain:
            if self._evaluate(rest, cancelled):
                answer.prefill_s = time.perf_counter() - begin_s
                stop_reason = answer.generate(chain, sampling.max_tokens, cancelled)
        answer.tell(stream.flush())
        if stream.stopped and stop_reason != "cancelled":
            stop_reason = "stop"
        end_s = time.perf_counter()
        first_s = answer.first_token_at_s - begin_s if answer.first_token_at_s else end_s - begin_s
        return Completion(
            text=stream.text,
            reasoning=stream.reasoning,
            stop_reason=stop_reason,
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            generated_tokens=answer.count,
            prefill_s=answer.prefill_s or end_s - begin_s,
            decode_s=end_s - begin_s - first_s,
            first_token_s=first_s,
        )

    def answer_nats(self, messages: Sequence[Message]) -> AnswerLoss:
        """How unexpected the last turn is. Always from an empty cache: the order of calls changes nothing."""
        prompt, answer = scored_tokens(self.model, self.template, messages)
        if not prompt or not answer:
            raise DataError("the chat template renders an empty prompt or an empty answer: nothing can be scored.")
        self._check_room(len(prompt), answer_tokens=len(answer))
        self.forget()
        if self.model.has_encoder:
            self.context.encode(prompt)
            before = [self.model.decoder_start]
        else:
            self._evaluate(prompt[:-1], lambda: False)
            before = prompt[-1:]
        inputs = [*before, *answer[:-1]]  # the token before each scored one
        nats = 0.0
        for begin in range(0, len(inputs), SCORING_BATCH_TOKENS):
            batch = inputs[begin : begin + SCORING_BATCH_TOKENS]
            self.context.decode(batch, len(self._evaluated), all_logits=True)
            self._evaluated += batch
            for index in range(len(batch)):
                logits = self.context.logits(index).astype(np.float64)
                highest = logits.max()
                nats += highest + np.log(np.exp(logits - highest).sum()) - logits[answer[begin + index]]
        return AnswerLoss(float(nats), len(answer))

    def forget(self) -> None:
        """Empty the cache: the next prompt is evaluated whole."""
        self._evaluated = []
        self.context.forget()

    def extend(self, token: int) -> bool:
        """Evaluate one more token; False if the context has no room for it."""
        if len(self._evaluated) >= self.context_tokens:
            return False
        self.context.decode([token], len(self._evaluated))
        self._evaluated.append(token)
        return True

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text: nothing for a control token, unless it is a marker of reasoning."""
        return self._hidden_markers.get(token) or self.model.piece(token)

    def _check_room(self, prompt_tokens: int, answer_tokens: int) -> None:
        if not prompt_tokens:
            raise DataError("the prompt is empty: there is nothing to continue.")
        needed = max(prompt_tokens, answer_tokens) if self.model.has_encoder else prompt_tokens + answer_tokens
        if needed > self.context_tokens:
            raise ContextFullError(
                f"the prompt of {prompt_tokens:,} tokens and at least {answer_tokens:,} for the answer do not fit the "
                f"context of {self.context_tokens:,} tokens. Shorten it, or take a larger context: "
                f"the model was trained for {self.model.context_tokens:,}."
            )

    def _take_up(self, tokens: list[int]) -> tuple[list[int], int]:
        """What is still to be evaluated before the answer begins, and how much of the prompt the cache has."""
        if self.model.has_encoder:
            self._evaluated = []
            self.context.encode(tokens)
            return [self.model.decoder_start], 0
        cached = self._keep_common_prefix(tokens)
        return tokens[cached:], cached

    def _keep_common_prefix(self, tokens: list[int]) -> int:
        """Cut the cache to what it has in common with the prompt; the last token must give fresh logits."""
        common = 0
        for have, want in zip(self._evaluated, tokens[:-1], strict=False):
            if have != want:
                break
            common += 1
        self._evaluated = self._evaluated[:common]
        try:
            self.context.forget(common)
        except UnsupportedError:  # a recurrent state cannot be cut back: it is empty now
            self._evaluated = []
        return len(self._evaluated)

    def _evaluate(self, tokens: Sequence[int], cancelled: Callable[[], bool]) -> bool:
        for begin in range(0, len(tokens), self.context.batch_tokens):
            if cancelled():
                return False
            batch = tokens[begin : begin + self.context.batch_tokens]
            self.context.decode(batch, len(self._evaluated))
            self._evaluated += batch
        return True

    def _opens_reasoning(self, tokens: Sequence[int]) -> bool:
        tail = b"".join(self.model.piece(token, special=True) for token in tokens[-12:])
        return tail.decode("utf-8", "replace").rstrip().endswith(THINK_OPEN)


class _Answer:
    """The token loop of one answer, and what it measured."""

    def __init__(self, engine: Engine, stream: TextStream, on_piece: Callable[[Piece], None]) -> None:
        self._engine, self._stream, self._on_piece = engine, stream, on_piece
        self.count = 0
        self.prefill_s = self.first_token_at_s = 0.0

    def generate(self, chain: SamplerChain, max_tokens: int, cancelled: Callable[[], bool]) -> str:
        """Choose, show and evaluate tokens until something ends it; returns the stop reason."""
        engine = self._engine
        while not cancelled():
            token = chain.sample(engine.context)
            self.first_token_at_s = self.first_token_at_s or time.perf_counter()
            if engine.model.ends_generation(token):
                return "end"
            self.count += 1
            self.tell(self._stream.feed(engine.token_bytes(token)))
            if self._stream.stopped:
                return "stop"
            if self.count >= max_tokens:
                return "length"
            if not engine.extend(token):
                return "context"
        return "cancelled"

    def tell(self, pieces: list[Piece]) -> None:
        """Hand on what can be shown."""
        for piece in pieces:
            self._on_piece(piece)


def _context_size(model: Model, asked: int | None) -> int:
    trained = model.context_tokens
    if asked is None:
        return min(trained, CHAT_CONTEXT_TOKENS)
    if not 1 <= asked <= trained:
        raise ConfigError(
            f"a context of {asked:,} tokens: expected 1 to {trained:,}, which {model.path.name} was trained for."
        )
    return asked


def _hidden_markers(model: Model) -> dict[int, bytes]:
    """Markers of reasoning that the vocabulary calls control tokens and would therefore not print."""
    markers = {}
    for marker in (THINK_OPEN, THINK_CLOSE):
        tokens = model.tokenize(marker, parse_special=True)
        if len(tokens) == 1 and model.is_control(tokens[0]):
            markers[tokens[0]] = marker.encode()
    return markers
