"""What is asked of an engine, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.sampling.sampler import Sampling
from runtime.text.reasoning_splitter import Piece

if TYPE_CHECKING:
    from runtime.grammars.grammar import Grammar


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was chosen, its log-probability, and the likeliest ones at its place, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """An answer and what it took.

    `stop_reason` is "end" (the model ended its turn), "stop" (a stop string), "length" (max_tokens), "context" (the
    context is full) or "cancelled". `generated_tokens` are the tokens of the text, without the one that ends the turn;
    `reasoning_tokens` of them are the thought's, the marker that closes it included, and `guessed_tokens` were guessed
    before they were chosen. `complete` is False where the text was cut, or does not fit the grammar yet. `queued_s` is
    the time until the prompt's turn came, `prefill_s` the time for the prompt, `first_token_s` from asking until the
    first token was chosen, `decode_s` the time after that, for the other tokens.
    """

    text: str
    reasoning: str | None
    stop_reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    reasoning_tokens: int
    guessed_tokens: int
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

    The grammar holds for the answer, not for the reasoning before it. After `reasoning_tokens` a thought is closed and
    the answer begins. `adapters` are the strengths of the engine's adapters, in their order; None takes those that the
    engine was given. Requests of a higher priority go first.
    """

    tokens: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: "Grammar | None" = None
    reasoning_tokens: int | None = None
    adapters: tuple[float, ...] | None = None
    priority: int = 0
