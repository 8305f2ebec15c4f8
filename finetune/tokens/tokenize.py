"""Turns conversations into token ids and labels; only the assistant's answers are scored, including the end of turn.

Labels come from the chat template itself (`ChatTemplate.segments`), never from marker strings. They are not shifted:
`labels[i]` is `input_ids[i]` if the token is scored, and -100 otherwise.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from finetune.config.row_limits import RowLimits, Train
from finetune.tokens.refusals import RefusedError, check_plain_text
from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate, Segment, encode_parts
from gladstone.errors import DataError
from gladstone.rows import Problems

IGNORED = -100
NOTHING_SCORED = "no turn is scored"


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
    places = range(len(example.labels) - 1, 0, -1)
    return next((place for place in places if example.labels[place] != IGNORED), 1)


def common_opening(examples: Sequence[Example]) -> int:
    """Return the length of the longest common prefix of all rows that contains no scored token.

    Each row keeps at least one token of its own that must be computed. 0 for a single row and for pairs.
    """
    first, *others = examples
    if not others or isinstance(first, PairExample):
        return 0
    room = min(min(_unscored(example.labels), needed_tokens(example) - 1) for example in examples)
    opening = first.input_ids[:room]
    for example in others:
        found = example.input_ids[: len(opening)]
        if found != opening:
            opening = opening[: next(place for place, token in enumerate(opening) if token != found[place])]
    return len(opening)


def _unscored(labels: Sequence[int]) -> int:
    """Count the tokens before the first scored one; the very first token is never scored."""
    return next((place for place, label in enumerate(labels) if place and label != IGNORED), len(labels))


@dataclass(frozen=True)
class Tokenized:
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
        return sum(scored_stretches(example) for example in self.examples)

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


def scored_turns(messages: Sequence[Message], train: Train) -> list[int]:
    """Return the indices of the turns to score: the assistant's, except those flagged not to be."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if train == "last":
        places = places[-1:]
    wanted = (True,) if train == "flagged" else (True, None)
    return [place for place in places if messages[place].train in wanted]


def scored_stretches(example: Example) -> int:
    """Count the contiguous runs of scored tokens in an example."""
    if isinstance(example, PairExample):
        return 1
    marks = [label != IGNORED for label in example.labels]
    return sum(mark and not before for before, mark in zip([False, *marks], marks, strict=False))


class Labeller:
    """Makes examples of conversations for a template, a tokenizer and limits; `pairs` for encoder-decoder models."""

    def __init__(
        self, template: ChatTemplate, tokenizer: TextTokenizer, limits: RowLimits, *, pairs: bool = False
    ) -> None:
        self._template, self._tokenizer, self._limits, self._pairs = template, tokenizer, limits, pairs

    def examples(self, conversation: Conversation) -> tuple[Sequence[Example], str]:
        """Return the examples of a row, and 'too long', 'cut' or ''.

        A row that is too long has none, long plain text has several. Raises DataError if the row cannot be rendered.
        """
        if not scored_turns(conversation.messages, self._limits.train):
            return [], NOTHING_SCORED
        if self._pairs:
            return self._pair_within(tokenize_pair(conversation, self._template, self._tokenizer))
        if conversation.is_text:
            return tokenize_text(conversation, self._tokenizer, self._limits.max_tokens), ""
        made = self._made(conversation)
        if _longest(made) <= self._limits.max_tokens:
            return made, ""
        cut = {"drop": _no_examples, "cut": self._cut, "cut prompt": self._cut_prompt}[self._limits.long_rows]
        shorter = cut(conversation, made)
        return (shorter, "cut") if shorter else ([], "too long")

    def check(self, conversation: Conversation) -> None:
        """Raise RefusedError if `examples` would; many times faster, since nothing is tokenised."""
        conversation = self.shorten_reasoning(conversation)
        if not scored_turns(conversation.messages, self._limits.train):
            return
        if self._pairs:
            render_pair(conversation, self._template, self._tokenizer)
        elif conversation.is_text:
            check_plain_text(conversation, self._tokenizer.special_tokens)
        else:
            render_conversation(conversation, self._template, self._tokenizer, self._limits.train)

    def _made(self, conversation: Conversation) -> list[TokenizedExample]:
        return tokenize_conversation(conversation, self._template, self._tokenizer, self._limits.train)

    def _pair_within(self, pair: PairExample) -> tuple[Sequence[Example], str]:
        limits = self._limits
        most_read, most_written = limits.max_tokens, limits.target_tokens or limits.max_tokens
        if len(pair.input_ids) <= most_read and len(pair.labels) <= most_written:
            return [pair], ""
        if limits.long_rows == "drop" or (limits.long_rows == "cut prompt" and len(pair.labels) > most_written):
            return [], "too long"
        excess = len(pair.input_ids) - most_read
        if limits.long_rows == "cut prompt":
            return [PairExample(pair.input_ids[excess:], pair.labels)], "cut"
        read = pair.input_ids if excess <= 0 else (*pair.input_ids[: most_read - 1], pair.input_ids[-1])
        return [PairExample(read, pair.labels[:most_written])], "cut"

    def whole(self, conversation: Conversation) -> Sequence[Example]:
        """Return the examples of a row without any limit; none if nothing of it is scored."""
        if not scored_turns(conversation.messages, self._limits.train):
            return []
        if self._pairs:
            return [tokenize_pair(conversation, self._template, self._tokenizer)]
        if conversation.is_text:
            return tokenize_text(conversation, self._tokenizer, 1 << 40)
        return self._made(conversation)

    def shorten_reasoning(self, conversation: Conversation) -> Conversation:
        """Return the row with its reasoning cut to the limit, at the end of a sentence if possible."""
        limit, answer = self._limits.reasoning_tokens, conversation.answer
        if limit is None or not answer.reasoning:
            return conversation
        ids = self._tokenizer.encode(answer.reasoning)
        if len(ids) <= limit:
            return conversation
        text = self._tokenizer.decode(ids[:limit]).rstrip("\ufffd")
        whole = max(text.rfind(end) for end in (". ", ".\n", "! ", "? ", "\n"))
        reasoning = text[: whole + 1].strip() if whole > 0 else text.strip()
        return replace(conversation, messages=(*conversation.prompt, replace(answer, reasoning=reasoning or None)))

    def _cut(self, _conversation: Conversation, made: list[TokenizedExample]) -> list[TokenizedExample]:
        """Truncate the examples to the limit; keep those that still have a scored token."""
        limit = self._limits.max_tokens
        cut = [TokenizedExample(each.input_ids[:limit], each.labels[:limit]) for each in made]
        return [each for each in cut if each.target_tokens]

    def _cut_prompt(self, conversation: Conversation, made: list[TokenizedExample]) -> list[TokenizedExample]:
        """Remove as much as necessary from the beginning of the last question; answers stay whole."""
        messages = list(conversation.messages)
        place = max((place for place, message in enumerate(messages) if message.role == "user"), default=None)
        if place is None:
            return []
        ids = self._tokenizer.encode(messages[place].content)
        excess = _longest(made) - self._limits.max_tokens
        while 0 < excess < len(ids):
            ids = ids[excess:]
            messages[place] = replace(messages[place], content=self._tokenizer.decode(ids).lstrip("\ufffd "))
            made = self._made(replace(conversation, messages=tuple(messages)))
            excess = _longest(made) - self._limits.max_tokens
        return made if excess <= 0 else []


def _no_examples(_conversation: Conversation, _made: list[TokenizedExample]) -> list[TokenizedExample]:
    return []


def _longest(examples: Sequence[TokenizedExample]) -> int:
    return max(len(example.input_ids) for example in examples)


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
    read, written = tokenizer.encode(question), tokenizer.encode(answer)
    return PairExample((*read, *end), (*written, *end))


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


def tokenize_all(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    limits: RowLimits,
    *,
    pairs: bool = False,
) -> Tokenized:
    """Tokenise a set within its limits; `pairs` for encoder-decoder models.

    Raises DataError that lists rows that cannot be rendered, or if no row is left.
    """
    labeller = Labeller(template, tokenizer, limits, pairs=pairs)
    examples: list[Example] = []
    rows: list[int] = []
    problems = Problems()
    hit = {"": 0, "too long": 0, "cut": 0, "reasoning": 0, NOTHING_SCORED: 0}
    for row, conversation in enumerate(conversations):
        shorter = labeller.shorten_reasoning(conversation)
        hit["reasoning"] += shorter is not conversation
        try:
            made, what = labeller.examples(shorter)
        except DataError as error:
            problems.add(error)
            continue
        hit[what] += 1
        examples += made
        rows += [row] * len(made)
    problems.check("rows that cannot be tokenised")
    if not examples and hit["too long"]:
        raise DataError(f"all {hit['too long']:,} rows have more than {limits.max_tokens} tokens (base.max_tokens).")
    if not examples:
        raise DataError(f"none of {hit[NOTHING_SCORED]:,} rows has a scored turn (data.train={limits.train}).")
    return Tokenized(
        tuple(examples), tuple(rows), hit["too long"], hit["cut"], hit["reasoning"], unscored=hit[NOTHING_SCORED]
    )


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
