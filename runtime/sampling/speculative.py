"""Speculative decoding: guesses of the next tokens, which the model then checks all at once.

A guess that is right saves a pass through the model; one that is wrong costs a place in a batch. The answer is the same
either way: every token is chosen from the model's own logits.
"""

from typing import TYPE_CHECKING, Protocol

from gladstone.errors import ConfigError
from runtime.scheduling.scheduler import common_length

if TYPE_CHECKING:
    from gladstone.llamacpp.context import Context

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
MOST_GUESSES = 8
MEMORY = 0.8  # weight of the past in the running share of right guesses
PAUSE_TOKENS = 16  # after guesses that were mostly wrong


class Guesser(Protocol):
    """Guesses what follows."""

    def guess(self, tokens: list[int]) -> list[int]:
        """Guesses of the tokens after these, the nearest first; none if there is nothing to go by."""

    def learn(self, guessed: int, right: int) -> None:
        """So many of the last guesses were right."""

    def close(self) -> None:
        """Nothing more will be guessed."""


class Confidence:
    """How many tokens to guess, by how often guesses were right lately."""

    def __init__(self, most: int = MOST_GUESSES) -> None:
        self._most = most
        self._share = 0.5
        self._pause = 0

    def count(self) -> int:
        """Guesses that are worth their place now; 0 for a while after bad ones."""
        if self._pause:
            self._pause -= 1
            return 0
        return max(1, round(self._most * self._share))

    def learn(self, guessed: int, right: int) -> None:
        self._share = MEMORY * self._share + (1 - MEMORY) * right / guessed
        if self._share < 0.2:
            self._share, self._pause = 0.3, PAUSE_TOKENS


class PromptLookup:
    """Guesses that what followed the last few tokens earlier in the text follows again.

    Answers that quote their question, its words or its form are full of such places (Saxena, 2023).
    """

    def __init__(self) -> None:
        self._confidence = Confidence()
        self._places: dict[tuple[int, ...], int] = {}  # where the text goes on after these tokens, the last such place
        self._seen = 0

    def guess(self, tokens: list[int]) -> list[int]:
        self._read(tokens)
        count = self._confidence.count()
        if not count:
            return []
        for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None and len(tokens) > length:
                return tokens[place : place + count]
        return []

    def learn(self, guessed: int, right: int) -> None:
        self._confidence.learn(guessed, right)

    def close(self) -> None:
        self._places.clear()

    def _read(self, tokens: list[int]) -> None:
        """Remember the places of all but the last token, whose sequel nobody knows."""
        for end in range(max(self._seen, SHORTEST_MATCH), len(tokens)):
            for length in range(SHORTEST_MATCH, min(LONGEST_MATCH, end) + 1):
                self._places[tuple(tokens[end - length : end])] = end
        self._seen = len(tokens)


class DraftModel:
    """Guesses with a small model of the same vocabulary, whose context all requests share: one sequence each.

    The context belongs to the engine's thread; `sequences` are those that nobody uses.
    """

    def __init__(self, context: "Context", sequences: list[int]) -> None:
        self._context, self._sequences = context, sequences
        self._sequence: int | None = None
        self._confidence = Confidence()
        self._known: list[int] = []  # what the small model has evaluated

    def guess(self, tokens: list[int]) -> list[int]:
        if self._sequence is None and self._sequences:
            self._sequence = self._sequences.pop()
        room = self._context.context_tokens // self._context.sequences - len(tokens)
        count = min(self._confidence.count(), room)
        if count <= 0 or self._sequence is None:
            return []
        self._catch_up(tokens)
        guesses = [int(self._context.logits().argmax())]
        while len(guesses) < count and not self._context.model.ends_generation(guesses[-1]):
            self._evaluate(guesses[-1:])
            guesses.append(int(self._context.logits().argmax()))
        return guesses

    def learn(self, guessed: int, right: int) -> None:
        self._confidence.learn(guessed, right)

    def close(self) -> None:
        if self._sequence is not None:
            self._context.forget(sequence=self._sequence)
            self._sequences.append(self._sequence)
            self._sequence = None

    def _catch_up(self, tokens: list[int]) -> None:
        """Evaluate the tokens that the small model has not seen, the last one in any case."""
        assert self._sequence is not None  # noqa: S101
        common = common_length(self._known, tokens, len(tokens) - 1)
        if common < len(self._known):
            self._context.forget(common, sequence=self._sequence)
            del self._known[common:]
        rest = tokens[common:]
        for begin in range(0, len(rest), self._context.batch_tokens):
            self._evaluate(rest[begin : begin + self._context.batch_tokens])

    def _evaluate(self, tokens: list[int]) -> None:
        assert self._sequence is not None  # noqa: S101
        self._context.decode(tokens, len(self._known), sequence=self._sequence)
        self._known += tokens


def check_draft(model_tokens: list[str], draft_tokens: list[str]) -> None:
    """Raises ConfigError unless a draft model has the vocabulary of the model it guesses for."""
    if model_tokens != draft_tokens:
        raise ConfigError(
            f"the draft model has another vocabulary ({len(draft_tokens):,} tokens against {len(model_tokens):,}): "
            "take a smaller model of the same family."
        )
