"""Conversations to token ids and labels: only the assistant's answers are scored, end of turn included.

Labels are computed from the chat template itself (`ChatTemplate.segments`), never from marker strings. They are not
shifted: `labels[i]` is `input_ids[i]` where the token is scored and -100 elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from gladstone.chat import Conversation
from gladstone.errors import DataError, listed
from gladstone.template import ChatTemplate

IGNORED = -100


class TextTokenizer(Protocol):
    """What is needed of a tokenizer: its special tokens, and the one it puts before every text (None: none)."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Texts of the special tokens and their ids."""

    @property
    def bos_id(self) -> int | None:
        """The token in front of every text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens recognised, nothing added."""


@dataclass(frozen=True)
class TokenizedExample:
    """One row for training; both of equal length, labels not shifted, -100 where not scored."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def target_tokens(self) -> int:
        """How many tokens are scored; the first token of a row never is, since nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Tokenized:
    """The rows of a set that fit, and the number of those that were too long."""

    examples: tuple[TokenizedExample, ...]
    too_long: int


def tokenize_conversation(
    conversation: Conversation, template: ChatTemplate, tokenizer: TextTokenizer
) -> TokenizedExample:
    """Tokens and labels of one row.

    Raises DataError if a text holds a special token, or if the template ends no answer with one: a model trained on
    that never stops.
    """
    _check_plain_text(conversation, tokenizer)
    special_ids = set(tokenizer.special_tokens.values())
    input_ids: list[int] = []
    labels: list[int] = []
    for segment in template.segments(conversation.messages):
        ids = tokenizer.encode(segment.text)
        if not input_ids and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        input_ids += ids
        if not segment.scored:
            labels += [IGNORED] * len(ids)
            continue
        end = max((index + 1 for index, token in enumerate(ids) if token in special_ids), default=0)
        if end == 0:
            raise DataError(f"{conversation.source}: the chat template ends the answer with no special token.")
        labels += ids[:end] + [IGNORED] * (len(ids) - end)
    return TokenizedExample(tuple(input_ids), tuple(labels))


def tokenize_all(
    conversations: Iterable[Conversation], template: ChatTemplate, tokenizer: TextTokenizer, max_tokens: int
) -> Tokenized:
    """Tokenize a set; rows of more than `max_tokens` are left out whole, never cut.

    Raises DataError naming the rows that cannot be rendered, or if no row is left.
    """
    examples, problems, too_long = [], [], 0
    for conversation in conversations:
        try:
            example = tokenize_conversation(conversation, template, tokenizer)
        except DataError as error:
            problems.append(str(error))
            continue
        if len(example.input_ids) > max_tokens:
            too_long += 1
        else:
            examples.append(example)
    if problems:
        raise DataError(listed("rows cannot be turned into tokens", problems))
    if not examples:
        raise DataError(f"all {too_long:,} rows have more than {max_tokens} tokens (base.max_tokens).")
    return Tokenized(tuple(examples), too_long)


def _check_plain_text(conversation: Conversation, tokenizer: TextTokenizer) -> None:
    for message in conversation.messages:
        for text in (message.content, message.reasoning or ""):
            for special in tokenizer.special_tokens:
                if special in text:
                    raise DataError(
                        f"{conversation.source}: a {message.role} text contains {special!r}, a special token of the "
                        "model; remove the marker from the row."
                    )
