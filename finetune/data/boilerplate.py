"""Sentences that open or end many answers: sources, disclaimers, greetings. Something is always left of an answer."""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import xxhash

from finetune.data.clean import words_key
from gladstone.chat import Conversation

MIN_CHARS = 30
MIN_ROWS = 20
MIN_SHARE = 0.01  # of the rows
EDGE = 3  # sentences looked at from either end
_BREAK = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass
class Boilerplate:
    """Counts the sentences at the edges of answers, 8 bytes each, then knows those that too many rows share."""

    _seen: list[np.ndarray] = field(default_factory=list)
    _block: list[int] = field(default_factory=list)
    _common: frozenset[int] = frozenset()
    _rows: int = 0

    def count(self, conversation: Conversation) -> None:
        """Look at the last answer of a row."""
        self._rows += 1
        sentences = _BREAK.split(conversation.answer.content)
        if len(sentences) > 1 and not conversation.is_text:
            edges = sentences if len(sentences) <= 2 * EDGE else (*sentences[:EDGE], *sentences[-EDGE:])
            self._block += {_key(sentence) for sentence in edges if _may_go(sentence)}
        if len(self._block) > 1 << 16:
            self._close_block()

    def find(self) -> int:
        """How many sentences are boilerplate."""
        self._close_block()
        if self._seen:
            keys, counts = np.unique(np.concatenate(self._seen), return_counts=True)
            self._common = frozenset(keys[counts >= max(MIN_ROWS, MIN_SHARE * self._rows)].tolist())
        self._seen = []
        return len(self._common)

    def strip(self, conversation: Conversation) -> Conversation:
        """The row without boilerplate around its last answer."""
        if conversation.is_text:
            return conversation
        answer = conversation.answer
        begin, end = 0, len(answer.content)
        for part in _edges(answer.content, forward=True):
            if not self._is_common(answer.content[slice(*part)]):
                break
            begin = part[1]
        for part in _edges(answer.content, forward=False):
            if part[0] < begin or not self._is_common(answer.content[slice(*part)]):
                break
            end = part[0]
        content = answer.content[begin:end].strip()
        if not content or content == answer.content:
            return conversation
        return replace(conversation, messages=(*conversation.prompt, replace(answer, content=content)))

    def _is_common(self, sentence: str) -> bool:
        return _may_go(sentence) and _key(sentence) in self._common

    def _close_block(self) -> None:
        if self._block:
            self._seen.append(np.array(self._block, dtype=np.uint64))
            self._block = []


def _edges(text: str, *, forward: bool) -> list[tuple[int, int]]:
    """The first or the last sentences as spans, from the edge inwards."""
    spans, begin = [], 0
    for gap in _BREAK.finditer(text):
        spans.append((begin, gap.start()))
        begin = gap.end()
    spans.append((begin, len(text)))
    return spans[:EDGE] if forward else spans[::-1][:EDGE]


def _may_go(sentence: str) -> bool:
    """False for short sentences, which may be an answer, and for those that announce what follows."""
    return len(sentence) >= MIN_CHARS and not sentence.endswith(":")


def _key(sentence: str) -> int:
    return xxhash.xxh3_64_intdigest(words_key(sentence).encode())
