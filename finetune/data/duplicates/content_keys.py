"""Normalised content of a row: its words as keys, input and answer apart, each split into passages."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from gladstone.chat.messages import Conversation, Message

MIN_ECHO = 4  # words; a shorter answer, like a label or an option, may occur in the input too
_SUPERSCRIPTS = str.maketrans({digit: f"^{index}" for index, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
_MARKS = (  # vowel signs and accents that `\w` excludes: without them different words of Hindi would be equal
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
    "\u0e31-\u0e4e\u0eb1-\u0ece\u0f00-\u109f\u1780-\u17d3\u302a-\u302f\u3099\u309a"
)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # scripts without spaces; each character counts as a word
_SIGNS = (
    r"|(?<![^\W\d_])[-−–](?=\.?\d)|(?<=\d\s)[-−–](?=\s\d)"  # a minus, but not a hyphen or dash
    r"|(?<=\d)[.,:/*](?=\d)|(?<=\d\s)[*/:](?=\s\d)"  # 1.5, 2/3, 12:30
    r"|(?<=\w)#(?!\w)"
)
_TOKEN = re.compile(
    rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+"
    rf"|[+=<>≤≥≠±×÷≈^%‰°€$£¥\u2190-\u2bff\U0001f000-\U0001faff]{_SIGNS}"  # operators, units, emoji
)
_ASCII_TOKEN = re.compile(rf"[a-z0-9]+|[+=<>^%$]{_SIGNS}", re.ASCII)
_ASCII_SIGN = re.compile("[0-9+=<>^%$#]")
_ASCII_LETTERS = {code: chr(code).lower() if chr(code).isalpha() else " " for code in range(128)}
_PASSAGE_END = re.compile(r"[\n.!?。！？؟।](?:[\"'”’)\]]*\s+|(?<=[\n。！？]))")


def content_key(text: str) -> str:
    """Return a text's words and meaningful symbols, without case, punctuation, spacing and accent encoding."""
    if text.isascii():
        if _ASCII_SIGN.search(text):
            return " ".join(_ASCII_TOKEN.findall(text.lower()))
        return " ".join(text.translate(_ASCII_LETTERS).split())
    return " ".join(_TOKEN.findall(unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).casefold()))


def passage_keys(text: str) -> list[str]:
    """Return the keys of a text's lines and sentences, in order."""
    return [key for part in _PASSAGE_END.split(text) if (key := content_key(part))]


def message_text(message: Message) -> str:
    """Return all text of a turn: reasoning, content and tool calls."""
    calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
    return "\n".join(part for part in (message.reasoning, message.content, *calls) if part)


@dataclass(frozen=True)
class RowContent:
    """A row's keys. `prompt` has a list of passages for each turn before the answer; it is empty for plain text."""

    roles: tuple[str, ...]
    prompt: tuple[list[str], ...]
    answer: list[str]

    def turns(self) -> Iterator[str]:
        """Yield the key of each turn, the answer's last."""
        for passages in (*self.prompt, self.answer):
            yield " ".join(passages)

    @property
    def prompt_key(self) -> str:
        """The key of the input: every turn before the answer, with its role. Empty for plain text."""
        turns = zip(self.roles, self.prompt, strict=False)
        return "\n".join(f"{role}: {' '.join(passages)}" for role, passages in turns)

    @property
    def key(self) -> str:
        """The key of the whole row."""
        return f"{self.prompt_key}\n\n{' '.join(self.answer)}"


def read_content(row: Conversation) -> RowContent:
    """Compute the keys of a row."""
    *prompt, answer = (passage_keys(message_text(message)) for message in row.messages)
    return RowContent(tuple(message.role for message in row.messages), tuple(prompt), answer)


def form_matters(row: Conversation) -> bool:
    """True for code, and if the answer repeats the input in another form, as in a punctuation task."""
    texts = [message_text(message) for message in row.messages]
    if any("```" in text or _CODE.search(text) for text in texts):
        return True
    answer = content_key(row.answer.content)
    return answer.count(" ") >= MIN_ECHO - 1 and any(answer in content_key(text) for text in texts[:-1])


_CODE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import |#include|function |SELECT |<\?|</?\w+>)|[;{}]\s*$", re.MULTILINE
)
