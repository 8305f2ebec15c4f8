"""What is wrong with a row: nothing is left of it, or it looks like one that nothing can be learnt from.

Looks deceive: a text with its punctuation set right repeats the question's words, a label is short. So such rows are
told of, and left out only where the recipe asks for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.config.data import CleaningSection
from finetune.data.cleaning.characters import width
from finetune.data.cleaning.clean import words_key
from gladstone.chat.messages import Conversation, Message

SHORT = 10  # characters of a row, under which it is told of


@dataclass(frozen=True)
class Flaw:
    """Why a row is left out, or may be: a reason to count, a detail; `size` is the length that is beyond a limit."""

    reason: str
    detail: str
    drops: bool
    size: int | None = None


# reason → the field of the cleaning section that leaves such rows out
OPTIONS = {"too short": "min_chars", "too long": "max_chars", "echo": "echoes", "cut": "cut_answers"}


def flaw(conversation: Conversation, section: CleaningSection) -> Flaw | None:
    """Why a row is left out; None where it is kept."""
    return next((found for found in flaws(conversation, section) if found.drops), None)


def flaws(conversation: Conversation, section: CleaningSection) -> Iterator[Flaw]:
    """All that is wrong with a row. A turn that calls tools may be empty, and so may what a tool returned."""
    if any(map(_is_empty, conversation.messages)):
        yield Flaw("empty", "nothing is left of a turn", drops=True)
        return
    yield from _wrong_lengths(conversation, section)
    if conversation.is_text:
        return
    question, answer = (message.content for message in conversation.messages[-2:])
    if section.echoes != "keep" and _is_echo(question, answer):
        yield Flaw("echo", "the answer has the words of the question", drops=section.echoes == "drop")
    if section.cut_answers != "keep" and is_cut(answer, likely=section.cut_answers == "drop likely"):
        drops = section.cut_answers != "report"
        yield Flaw("cut", f"the answer stops at …{answer[-30:]!r}", drops)


def _is_empty(message: Message) -> bool:
    return not message.content and not message.tool_calls and message.role != "tool"


def _wrong_lengths(conversation: Conversation, section: CleaningSection) -> Iterator[Flaw]:
    contents = [message.content for message in conversation.messages]
    fewest = SHORT if section.min_chars is None else section.min_chars
    size = sum(map(width, contents)) if sum(map(len, contents)) < fewest else fewest
    if size < fewest:
        detail = f"{size} characters in all, fewer than {fewest} (data.cleaning.min_chars)"
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


def is_cut(answer: str, *, likely: bool = False) -> bool:
    """True if an answer of several sentences stops in the middle of one: at a word or a sign that ends none.

    With `likely`, also where the last sentence of a paragraph has no end and two before it have; that takes many rows
    whose author left out the last full stop. Words are English. Items of a list, headings, addresses are no sentences.
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
