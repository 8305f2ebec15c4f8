"""Finds sentences that begin or end many answers: sources, disclaimers, greetings. An answer is never emptied."""

import re
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import xxhash

from finetune.data.cleaning.clean import words_key
from finetune.data.cleaning.findings import LISTED_SOURCES
from gladstone.chat.messages import Conversation
from gladstone.formats.trimming import trim_after_marker, trimmed

MIN_CHARS = 30
MIN_ROWS = 20
MIN_SHARE = 0.01  # of the rows
EDGE = 3  # sentences examined at either end
_BREAK = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass
class Sentence:
    """A sentence that many answers share: how often it begins or ends one, and the first sources."""

    text: str
    answers: int = 0
    opens: int = 0
    ends: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class Boilerplate:
    """Counts sentences at the edges of answers, 8 bytes each, then identifies those that too many rows share."""

    found: dict[int, Sentence] = field(default_factory=dict)
    _seen: list[np.ndarray] = field(default_factory=list)
    _block: list[int] = field(default_factory=list)
    _common: frozenset[int] = frozenset()
    _rows: int = 0

    def count(self, conversation: Conversation) -> None:
        """Count the sentences at the edges of a row's last answer."""
        self._rows += 1
        sentences = _BREAK.split(conversation.answer.content)
        if len(sentences) > 1 and not conversation.is_text:
            edges = sentences if len(sentences) <= 2 * EDGE else (*sentences[:EDGE], *sentences[-EDGE:])
            self._block += {_key(sentence) for sentence in edges if _is_removable(sentence)}
        if len(self._block) > 1 << 16:
            self._close_block()

    def find(self) -> int:
        """Identify boilerplate, and return the number of sentences."""
        self._close_block()
        if self._seen:
            keys, counts = np.unique(np.concatenate(self._seen), return_counts=True)
            self._common = frozenset(keys[counts >= max(MIN_ROWS, MIN_SHARE * self._rows)].tolist())
        self._seen = []
        return len(self._common)

    def strip(self, conversation: Conversation) -> Conversation:
        """Return the row without boilerplate around its last answer; `found` records the sentences."""
        answer = conversation.answer
        opening, closing = self._around(answer.content) if not conversation.is_text else ([], [])
        begin = opening[-1][1] if opening else 0
        end = closing[-1][0] if closing else len(answer.content)
        content = (trim_after_marker if begin else trimmed)(answer.content[begin:end])
        if not content or not (opening or closing):
            return conversation
        for verb, spans in (("opens", opening), ("ends", closing)):
            for span in spans:
                self._add(answer.content[slice(*span)], verb, conversation.source)
        return replace(conversation, messages=(*conversation.prompt, replace(answer, content=content)))

    def sentences(self) -> list[dict[str, Any]]:
        """Return the sentences that `strip` found, the most frequent first."""
        return [vars(sentence) for sentence in sorted(self.found.values(), key=lambda sentence: -sentence.answers)]

    def _around(self, text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the spans of common sentences at the beginning and at the end of a text, from the edge inwards."""
        common = partial(takewhile, lambda span: self._is_common(text[slice(*span)]))
        opening = list(common(_edges(text, forward=True)))
        begin = opening[-1][1] if opening else 0
        closing = [span for span in common(_edges(text, forward=False)) if span[0] >= begin]
        return opening, closing

    def _add(self, sentence: str, verb: str, source: str) -> None:
        shared = self.found.setdefault(_key(sentence), Sentence(sentence))
        shared.answers += 1
        if verb == "opens":
            shared.opens += 1
        else:
            shared.ends += 1
        if len(shared.first) < LISTED_SOURCES:
            shared.first.append(source)

    def _is_common(self, sentence: str) -> bool:
        return _is_removable(sentence) and _key(sentence) in self._common

    def _close_block(self) -> None:
        if self._block:
            self._seen.append(np.array(self._block, dtype=np.uint64))
            self._block = []


def _edges(text: str, *, forward: bool) -> list[tuple[int, int]]:
    """Return the spans of the first or the last sentences, from the edge inwards."""
    spans, begin = [], 0
    for gap in _BREAK.finditer(text):
        spans.append((begin, gap.start()))
        begin = gap.end()
    spans.append((begin, len(text)))
    return spans[:EDGE] if forward else spans[::-1][:EDGE]


def _is_removable(sentence: str) -> bool:
    """False for short sentences, which may be the answer, and for those that introduce what follows."""
    return len(sentence) >= MIN_CHARS and not sentence.endswith(":")


def _key(sentence: str) -> int:
    return xxhash.xxh3_64_intdigest(words_key(sentence).encode())
