"""Speculative decoding: a drafter proposes the next tokens, and the model verifies all of them in one pass.

An accepted draft token saves a pass through the model; a rejected one costs a row of a batch. The answer is the same
either way: every token is sampled from the model's own logits.
"""

from typing import TYPE_CHECKING, Protocol

from gladstone.errors import ConfigError
from runtime.sampling.common_prefix import common_prefix_length

if TYPE_CHECKING:
    from gladstone.llamacpp.context import Context

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
MAX_DRAFT_TOKENS = 8
SMOOTHING = 0.8  # weight of the past in the moving average of the acceptance rate
PAUSE_TOKENS = 16  # after drafts that were mostly rejected


class Drafter(Protocol):
    """Proposes draft tokens for one request."""

    def propose(self, tokens: list[int]) -> list[int]:
        """Draft tokens that may follow `tokens`, in order; [] where a draft is not worth its cost."""

    def record(self, proposed: int, accepted: int) -> None:
        """The model accepted so many of the last draft tokens."""

    def close(self) -> None:
        """Free what the drafter used; nothing is proposed after that."""


class Confidence:
    """How many tokens to draft, by the acceptance rate of the last drafts."""

    def __init__(self, limit: int = MAX_DRAFT_TOKENS) -> None:
        self._limit = limit
        self._acceptance = 0.5
        self._pause = 0

    def count(self) -> int:
        """Draft tokens that are worth their cost; 0 for a while after rejected ones."""
        if self._pause:
            self._pause -= 1
            return 0
        return max(1, round(self._limit * self._acceptance))

    def record(self, proposed: int, accepted: int) -> None:
        self._acceptance = SMOOTHING * self._acceptance + (1 - SMOOTHING) * accepted / proposed
        if self._acceptance < 0.2:
            self._acceptance, self._pause = 0.3, PAUSE_TOKENS


class PromptLookup:
    """Proposes what followed the last few tokens where they occurred earlier in the text (n-gram lookup).

    Answers that quote their question repeat many such runs (prompt lookup decoding, Saxena, 2023).
    """

    def __init__(self) -> None:
        self._confidence = Confidence()
        self._continuations: dict[tuple[int, ...], int] = {}  # n-gram: the position after its last occurrence
        self._indexed = 0

    def propose(self, tokens: list[int]) -> list[int]:
        self._index(tokens)
        count = self._confidence.count()
        if not count:
            return []
        for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            position = self._continuations.get(tuple(tokens[-length:]))
            if position is not None and len(tokens) > length:
                return tokens[position : position + count]
        return []

    def record(self, proposed: int, accepted: int) -> None:
        self._confidence.record(proposed, accepted)

    def close(self) -> None:
        self._continuations.clear()

    def _index(self, tokens: list[int]) -> None:
        """Index the n-grams before the last token."""
        for end in range(max(self._indexed, SHORTEST_MATCH), len(tokens)):
            for length in range(SHORTEST_MATCH, min(LONGEST_MATCH, end) + 1):
                self._continuations[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)


class DraftModel:
    """Proposes the greedy continuation of a small model with the same vocabulary.

    All requests share its context, one sequence each. The context belongs to the engine's thread; `sequences` are those
    that no drafter uses.
    """

    def __init__(self, context: "Context", sequences: list[int]) -> None:
        self._context, self._sequences = context, sequences
        self._sequence: int | None = None
        self._confidence = Confidence()
        self._evaluated: list[int] = []  # what the sequence holds

    def propose(self, tokens: list[int]) -> list[int]:
        if self._sequence is None and self._sequences:
            self._sequence = self._sequences.pop()
        room = self._context.context_tokens // self._context.sequences - len(tokens)
        count = min(self._confidence.count(), room)
        if count <= 0 or self._sequence is None:
            return []
        self._catch_up(self._sequence, tokens)
        draft = [int(self._context.logits().argmax())]
        while len(draft) < count and not self._context.model.ends_generation(draft[-1]):
            self._evaluate(self._sequence, draft[-1:])
            draft.append(int(self._context.logits().argmax()))
        return draft

    def record(self, proposed: int, accepted: int) -> None:
        self._confidence.record(proposed, accepted)

    def close(self) -> None:
        if self._sequence is not None:
            self._context.forget(sequence=self._sequence)
            self._sequences.append(self._sequence)
            self._sequence = None

    def _catch_up(self, sequence: int, tokens: list[int]) -> None:
        """Evaluate the tokens that the draft model has not seen, and always the last one."""
        common = common_prefix_length(self._evaluated, tokens, len(tokens) - 1)
        if common < len(self._evaluated):
            self._context.forget(common, sequence=sequence)
            del self._evaluated[common:]
        rest = tokens[common:]
        for begin in range(0, len(rest), self._context.batch_tokens):
            self._evaluate(sequence, rest[begin : begin + self._context.batch_tokens])

    def _evaluate(self, sequence: int, tokens: list[int]) -> None:
        self._context.decode(tokens, len(self._evaluated), sequence=sequence)
        self._evaluated += tokens


def check_draft(model_tokens: list[str], draft_tokens: list[str]) -> None:
    """Raises ConfigError unless the draft model has the vocabulary of the model it drafts for."""
    if model_tokens != draft_tokens:
        raise ConfigError(
            f"the draft model has another vocabulary ({len(draft_tokens):,} tokens against {len(model_tokens):,}): "
            "take a smaller model of the same family."
        )
