"""Makes the examples of rows within a recipe's limits: leaves out or cuts long rows, and counts them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from finetune.config.row_limits import RowLimits
from finetune.tokens.examples import Example, PairExample, TokenizedExample, TokenizedSet
from finetune.tokens.refusals import check_plain_text
from finetune.tokens.tokenize import (
    TextTokenizer,
    render_conversation,
    render_pair,
    scored_turns,
    tokenize_conversation,
    tokenize_pair,
    tokenize_text,
)
from gladstone.chat.messages import Conversation
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from gladstone.rows import Problems

NOTHING_SCORED = "no turn is scored"


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
            return self._fit_pair(tokenize_pair(conversation, self._template, self._tokenizer))
        if conversation.is_text:
            return tokenize_text(conversation, self._tokenizer, self._limits.max_tokens), ""
        examples = self._tokenize(conversation)
        if _longest(examples) <= self._limits.max_tokens:
            return examples, ""
        cut = {"drop": _no_examples, "cut": self._cut, "cut prompt": self._cut_prompt}[self._limits.long_rows]
        shorter = cut(conversation, examples)
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

    def _tokenize(self, conversation: Conversation) -> list[TokenizedExample]:
        return tokenize_conversation(conversation, self._template, self._tokenizer, self._limits.train)

    def _fit_pair(self, pair: PairExample) -> tuple[Sequence[Example], str]:
        limits = self._limits
        max_inputs, max_labels = limits.max_tokens, limits.target_tokens or limits.max_tokens
        if len(pair.input_ids) <= max_inputs and len(pair.labels) <= max_labels:
            return [pair], ""
        if limits.long_rows == "drop" or (limits.long_rows == "cut prompt" and len(pair.labels) > max_labels):
            return [], "too long"
        excess = len(pair.input_ids) - max_inputs
        if limits.long_rows == "cut prompt":
            return [PairExample(pair.input_ids[excess:], pair.labels)], "cut"
        inputs = pair.input_ids if excess <= 0 else (*pair.input_ids[: max_inputs - 1], pair.input_ids[-1])
        return [PairExample(inputs, pair.labels[:max_labels])], "cut"

    def untruncated(self, conversation: Conversation) -> Sequence[Example]:
        """Return the examples of a row without any limit; none if nothing of it is scored."""
        if not scored_turns(conversation.messages, self._limits.train):
            return []
        if self._pairs:
            return [tokenize_pair(conversation, self._template, self._tokenizer)]
        if conversation.is_text:
            return tokenize_text(conversation, self._tokenizer, 1 << 40)
        return self._tokenize(conversation)

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

    def _cut(self, _conversation: Conversation, examples: list[TokenizedExample]) -> list[TokenizedExample]:
        """Truncate the examples to the limit; keep those that still have a scored token."""
        limit = self._limits.max_tokens
        cut = [TokenizedExample(example.input_ids[:limit], example.labels[:limit]) for example in examples]
        return [example for example in cut if example.target_tokens]

    def _cut_prompt(self, conversation: Conversation, examples: list[TokenizedExample]) -> list[TokenizedExample]:
        """Remove as much as necessary from the beginning of the last question; answers stay whole."""
        messages = list(conversation.messages)
        last = max((index for index, message in enumerate(messages) if message.role == "user"), default=None)
        if last is None:
            return []
        ids = self._tokenizer.encode(messages[last].content)
        excess = _longest(examples) - self._limits.max_tokens
        while 0 < excess < len(ids):
            ids = ids[excess:]
            messages[last] = replace(messages[last], content=self._tokenizer.decode(ids).lstrip("\ufffd "))
            examples = self._tokenize(replace(conversation, messages=tuple(messages)))
            excess = _longest(examples) - self._limits.max_tokens
        return examples if excess <= 0 else []


def _no_examples(_conversation: Conversation, _examples: list[TokenizedExample]) -> list[TokenizedExample]:
    return []


def _longest(examples: Sequence[TokenizedExample]) -> int:
    return max(len(example.input_ids) for example in examples)


def tokenize_all(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    limits: RowLimits,
    *,
    pairs: bool = False,
) -> TokenizedSet:
    """Tokenise a set within its limits; `pairs` for encoder-decoder models.

    Raises DataError that lists rows that cannot be rendered, or if no row is left.
    """
    labeller = Labeller(template, tokenizer, limits, pairs=pairs)
    examples: list[Example] = []
    rows: list[int] = []
    problems = Problems()
    counts = {"": 0, "too long": 0, "cut": 0, "reasoning": 0, NOTHING_SCORED: 0}
    for row, conversation in enumerate(conversations):
        shorter = labeller.shorten_reasoning(conversation)
        counts["reasoning"] += shorter is not conversation
        try:
            row_examples, fate = labeller.examples(shorter)
        except DataError as error:
            problems.add(error)
            continue
        counts[fate] += 1
        examples += row_examples
        rows += [row] * len(row_examples)
    problems.check("rows that cannot be tokenised")
    if not examples and counts["too long"]:
        raise DataError(f"all {counts['too long']:,} rows have more than {limits.max_tokens} tokens (base.max_tokens).")
    if not examples:
        raise DataError(f"none of {counts[NOTHING_SCORED]:,} rows has a scored turn (data.train={limits.train}).")
    return TokenizedSet(
        tuple(examples),
        tuple(rows),
        counts["too long"],
        counts["cut"],
        counts["reasoning"],
        unscored=counts[NOTHING_SCORED],
    )
