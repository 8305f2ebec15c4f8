"""Turns conversations into token ids and labels; only the assistant's answers are scored, including the end of turn.

Labels come from the chat template itself (`ChatTemplate.segments`), never from marker strings.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from finetune.config.row_limits import Train
from finetune.tokens.examples import IGNORED, Example, PairExample, TokenizedExample
from finetune.tokens.refusals import RefusedError, check_plain_text
from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate, Segment, encode_parts
from gladstone.errors import DataError


class TextTokenizer(Protocol):
    """The tokenizer interface; `bos_id` and `eos_id` are None if there is no such token."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens: text → id."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins every text."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""

    def encode(self, text: str) -> list[int]:
        """Tokenise a text; special tokens are recognised, none are added."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""


def scored_turns(messages: Sequence[Message], train: Train) -> list[int]:
    """Return the indices of the turns to score: the assistant's, except those flagged not to be."""
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if train == "last":
        turns = turns[-1:]
    accepted_flags = (True,) if train == "flagged" else (True, None)
    return [index for index in turns if messages[index].train in accepted_flags]


def tokenize_conversation(
    conversation: Conversation, template: ChatTemplate, tokenizer: TextTokenizer, train: Train = "all"
) -> list[TokenizedExample]:
    """Tokenise and label a row; several examples if the template rewrites earlier turns, none if nothing is scored.

    Raises DataError if a text contains a special token, or if the template ends no answer with one: a model trained on
    that would never stop.
    """
    rendered = render_conversation(conversation, template, tokenizer, train)
    try:
        return [_tokenize_segments(segments, tokenizer) for segments in rendered]
    except DataError as error:
        raise RefusedError(conversation.source, str(error)) from None


def render_conversation(
    conversation: Conversation, template: ChatTemplate, tokenizer: TextTokenizer, train: Train
) -> list[list[Segment]]:
    """Render a row. Raises RefusedError if a text contains a special token, or if the template refuses the row."""
    check_plain_text(conversation, tokenizer.special_tokens)
    scored = scored_turns(conversation.messages, train)
    try:
        return template.examples(conversation.messages, conversation.tools, scored)
    except DataError as error:
        raise RefusedError(conversation.source, str(error)) from None


def _tokenize_segments(segments: Sequence[Segment], tokenizer: TextTokenizer) -> TokenizedExample:
    special_ids = set(tokenizer.special_tokens.values())
    input_ids: list[int] = []
    labels: list[int] = []
    parts = encode_parts([segment.text for segment in segments], tokenizer.encode)
    for segment, ids in zip(segments, parts, strict=True):
        if not input_ids and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        input_ids += ids
        if not segment.scored:
            labels += [IGNORED] * len(ids)
            continue
        end = max((index + 1 for index, token in enumerate(ids) if token in special_ids), default=0)
        if end == 0:
            raise DataError("the chat template ends the answer with no special token.")
        labels += ids[:end] + [IGNORED] * (len(ids) - end)
    return TokenizedExample(tuple(input_ids), tuple(labels))


def tokenize_text(conversation: Conversation, tokenizer: TextTokenizer, max_tokens: int) -> list[TokenizedExample]:
    """Tokenise plain text without a template, all of it scored; a long text becomes several examples.

    Only the last one ends with EOS.
    """
    check_plain_text(conversation, tokenizer.special_tokens)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = [*tokenizer.encode(conversation.answer.content), *end]
    room = max_tokens - len(bos)
    pieces = [(*bos, *ids[begin : begin + room]) for begin in range(0, len(ids), room)]
    return [TokenizedExample(piece, piece) for piece in pieces if len(piece) > 1]


def tokenize_pair(conversation: Conversation, template: ChatTemplate, tokenizer: TextTokenizer) -> PairExample:
    """Tokenise a row for an encoder-decoder model: the rendered prompt as input, the answer as labels, both with EOS.

    Raises DataError for plain text, which has no prompt, and if a text contains a special token.
    """
    question, answer = render_pair(conversation, template, tokenizer)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    input_ids, labels = tokenizer.encode(question), tokenizer.encode(answer)
    return PairExample((*input_ids, *end), (*labels, *end))


def render_pair(conversation: Conversation, template: ChatTemplate, tokenizer: TextTokenizer) -> tuple[str, str]:
    """Render prompt and answer of a pair. Raises RefusedError for a row that is not a pair of texts."""
    source, answer = conversation.source, conversation.answer
    if conversation.is_text:
        raise RefusedError(source, "plain text has no prompt for the encoder.")
    check_plain_text(conversation, tokenizer.special_tokens)
    if answer.tool_calls:
        raise RefusedError(source, "encoder-decoder models do not generate tool calls; leave the row out.")
    try:
        question = template.render(conversation.prompt, tools=conversation.tools, add_generation_prompt=True)
    except DataError as error:
        raise RefusedError(source, str(error)) from None
    opening = template.markers.opening
    if answer.reasoning and tokenizer.decode(tokenizer.encode(opening)).strip() != opening:
        raise RefusedError(
            source,
            f"the tokenizer has no {opening!r}, so that reasoning cannot be separated from the answer; "
            "set data.reasoning=drop.",
        )
    return question, template.with_reasoning(answer)


def scored_texts(example: Example, tokenizer: TextTokenizer) -> Iterator[tuple[str, bool]]:
    """Yield the text of an example in runs, each with whether it is scored."""
    if isinstance(example, PairExample):
        yield f"{tokenizer.decode(list(example.input_ids))}\n", False
        yield tokenizer.decode(list(example.labels)), True
        return
    begin = 0
    for index in range(1, len(example.labels) + 1):
        scored = example.labels[begin] != IGNORED
        if index == len(example.labels) or (example.labels[index] != IGNORED) != scored:
            yield tokenizer.decode(list(example.input_ids[begin:index])), scored
            begin = index
