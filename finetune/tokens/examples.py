"""Training examples: token ids with labels, how many tokens they cost, and how many of them are scored.

Labels are not shifted: `labels[i]` is `input_ids[i]` if the token is scored, and -100 otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

IGNORED = -100


@dataclass(frozen=True)
class TokenizedExample:
    """One training sequence: `input_ids` and `labels`, both (T,) int; labels are not shifted, -100 if not scored."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def target_tokens(self) -> int:
        """The number of scored tokens. The first token is never scored, since nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class PairExample:
    """One encoder-decoder example: `input_ids` (S,) of the encoder and `labels` (T,) of the decoder, both with EOS."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def target_tokens(self) -> int:
        """The number of scored tokens: all labels."""
        return len(self.labels)


Example = TokenizedExample | PairExample


def token_count(example: Example) -> int:
    """Return the number of tokens computed for an example: of a pair, those of encoder and decoder."""
    return len(example.input_ids) + (len(example.labels) if isinstance(example, PairExample) else 0)


def needed_tokens(example: Example) -> int:
    """Return how many tokens of a decoder's example must be computed: those before the last scored one, or one."""
    backwards = range(len(example.labels) - 1, 0, -1)
    return next((index for index in backwards if example.labels[index] != IGNORED), 1)


def common_prefix_length(examples: Sequence[Example]) -> int:
    """Return the length of the longest common prefix of all rows that contains no scored token.

    Each row keeps at least one token of its own that must be computed. 0 for a single row and for pairs.
    """
    first, *others = examples
    if not others or isinstance(first, PairExample):
        return 0
    room = min(min(_unscored_prefix(example.labels), needed_tokens(example) - 1) for example in examples)
    prefix = first.input_ids[:room]
    for example in others:
        tokens = example.input_ids[: len(prefix)]
        if tokens != prefix:
            prefix = prefix[: next(index for index, token in enumerate(prefix) if token != tokens[index])]
    return len(prefix)


def _unscored_prefix(labels: Sequence[int]) -> int:
    """Count the tokens before the first scored one; the very first token is never scored."""
    return next((index for index, label in enumerate(labels) if index and label != IGNORED), len(labels))


def scored_spans(example: Example) -> int:
    """Count the contiguous runs of scored tokens in an example."""
    if isinstance(example, PairExample):
        return 1
    scored = [label != IGNORED for label in example.labels]
    return sum(now and not before for before, now in zip([False, *scored], scored, strict=False))


@dataclass(frozen=True)
class TokenizedSet:
    """The examples of a set, and how many rows the limits left out, cut, or shortened in their reasoning.

    A row may have several examples; `unscored` rows are left out because none of their turns is scored.
    """

    examples: tuple[Example, ...]
    rows: tuple[int, ...] = ()  # the row that each example comes from, counted from 0
    too_long: int = 0
    cut: int = 0
    reasoning_cut: int = 0
    unscored: int = 0

    @property
    def scored_turns(self) -> int:
        """The number of scored answers; each piece of plain text counts as one."""
        return sum(scored_spans(example) for example in self.examples)

    @property
    def scored_tokens(self) -> int:
        """The number of scored tokens."""
        return sum(example.target_tokens for example in self.examples)

    @property
    def tokens(self) -> int:
        """The number of computed tokens, scored or not."""
        return sum(token_count(example) for example in self.examples)

    @property
    def scored(self) -> str:
        """The figures above as text."""
        turns, scored, tokens = self.scored_turns, self.scored_tokens, self.tokens  # each property scans all labels
        share = scored / max(tokens, 1)
        return f"{turns:,} turn{'s' * (turns != 1)}, {scored:,} of {tokens:,} tokens ({share:.0%})"
