"""A request to an engine, and its completion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.sampling.sampler import Sampling
from runtime.text.reasoning_splitter import Piece

if TYPE_CHECKING:
    from runtime.grammars.grammar import Grammar


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token, its log-probability, and the likeliest tokens at its position, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """An answer, with token counts and times.

    `stop_reason` is "end" (the model ended its turn), "stop" (a stop string), "length" (max_tokens), "context" (the
    context is full) or "cancelled". `generated_tokens` are the tokens of the text, without the one that ends the turn;
    `reasoning_tokens` of them are reasoning, its closing marker included, and `accepted_draft_tokens` were drafted and
    accepted. `complete` is False if the text was cut, or does not match the grammar yet. `queued_s` is the time in the
    queue, `prefill_s` the time of the prompt, `first_token_s` the time from `submit` to the first token, and
    `decode_s` the time of the tokens after it.
    """

    text: str
    reasoning: str | None
    stop_reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    accepted_draft_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    first_token_s: float
    complete: bool
    logprobs: tuple[TokenLogprob, ...] | None = None


Event = Piece | Completion | BaseException
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Request:
    """Tokens to continue, and how.

    The grammar constrains the answer, not the reasoning before it. After `reasoning_tokens` tokens the reasoning is
    closed and the answer begins. `adapters` are the scales of the engine's adapters, in their order; None means the
    scales that the engine was opened with. Requests of a higher priority run first.
    """

    tokens: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: "Grammar | None" = None
    reasoning_tokens: int | None = None
    adapters: tuple[float, ...] | None = None
    priority: int = 0
