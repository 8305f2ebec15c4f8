"""Flaws of a row: it is empty, or looks as if nothing can be learnt from it.

Appearances deceive: a punctuation task repeats the question's words, a label is short. Such rows are therefore only
reported, and left out only if the recipe asks for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.config.data import CleaningSection
from finetune.data.cleaning.characters import width
from finetune.data.cleaning.clean import words_key
from gladstone.chat.messages import Conversation, Message

SHORT = 10  # characters; shorter rows are reported


@dataclass(frozen=True)
class Flaw:
    """Why a row is or may be left out: a reason to count, a detail, and `size`, the length beyond a limit."""

    reason: str
    detail: str
    drops: bool
    size: int | None = None


# reason → the field of CleaningSection that leaves such rows out
OPTIONS = {"too short": "min_chars", "too long": "max_chars", "echo": "echoes", "cut": "cut_answers"}


def flaw(conversation: Conversation, section: CleaningSection) -> Flaw | None:
    """Return the flaw that leaves a row out; None if it is kept."""
    return next((candidate for candidate in flaws(conversation, section) if candidate.drops), None)


def flaws(conversation: Conversation, section: CleaningSection) -> Iterator[Flaw]:
    """Yield all flaws of a row. Turns that call tools, and tool results, may be empty."""
    if any(map(_is_empty, conversation.messages)):
        yield Flaw("empty", "a turn is empty", drops=True)
        return
    yield from _wrong_lengths(conversation, section)
    if conversation.is_text:
        return
    question, answer = (message.content for message in conversation.messages[-2:])
    if section.echoes != "keep" and _is_echo(question, answer):
        yield Flaw("echo", "the answer repeats the words of the question", drops=section.echoes == "drop")
    if section.cut_answers != "keep" and is_truncated(answer, likely=section.cut_answers == "drop likely"):
        drops = section.cut_answers != "report"
        yield Flaw("cut", f"the answer stops at …{answer[-30:]!r}", drops)


def _is_empty(message: Message) -> bool:
    return not message.content and not message.tool_calls and message.role != "tool"


def _wrong_lengths(conversation: Conversation, section: CleaningSection) -> Iterator[Flaw]:
    contents = [message.content for message in conversation.messages]
    fewest = SHORT if section.min_chars is None else section.min_chars
    size = sum(map(width, contents)) if sum(map(len, contents)) < fewest else fewest
    if size < fewest:
        detail = f"{size} characters in total, fewer than {fewest} (data.cleaning.min_chars)"
        yield Flaw("too short", detail, drops=section.min_chars is not None, size=size)
    most = section.max_chars
    if most is not None and 2 * max(map(len, contents)) > most and not conversation.is_text:
        size = max(map(width, contents))
        if size > most:
            detail = f"a turn of {size:,} characters, {size - most:,} more than data.cleaning.max_chars={most}"
            yield Flaw("too long", detail, drops=True, size=size)


def _is_echo(question: str, answer: str) -> bool:
    shorter, longer = sorted((len(question), len(answer)))
    words = words_key(answer) if longer < 2 * shorter + 20 else ""
    return words != "" and words == words_key(question)


_WHOLE_SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9À-ÖØ-Þ])")
_LIST_ITEM = re.compile(r"^(?:[-*•–#>|]|\(?[0-9a-zA-Z]{1,3}[.)]\s|\|)")
_OPEN_WORDS = frozenset((
    "a", "an", "the", "of", "at", "for", "from", "with", "without", "into", "onto", "than", "as", "and", "or", "but",
    "nor", "which", "who", "whose", "is", "are", "was", "were", "been", "could", "may", "might", "must", "should",
    "would", "such", "its", "their", "his", "between", "including", "because",
))  # fmt: skip


def is_truncated(answer: str, *, likely: bool = False) -> bool:
    """True if an answer of several sentences stops mid-sentence: at a word or character that ends none.

    With `likely`, also if the last sentence of a paragraph has no end but two before it have; that includes many rows
    whose author forgot the full stop. English only. List items, headings and addresses do not count as sentences.
    """
    text = answer.rstrip()
    last_line = text.rpartition("\n")[2]
    if not (text[-1:].isalpha() or text.endswith((",", "-", "–", "("))) or _LIST_ITEM.match(last_line):
        return False
    sentences = _WHOLE_SENTENCE.split(last_line)
    rest = sentences[-1].split()
    if not text[-1].isalpha() or rest[-1] in _OPEN_WORDS:
        return len(rest) > 1 and (len(sentences) > 1 or "." in text[: -len(last_line)])
    return likely and len(sentences) > 2 and len(rest) > 3 and "." not in rest[-1] and "@" not in rest[-1]
