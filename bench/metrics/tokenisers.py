"""How each metric tokenises text: as English benchmarks do for English, and by Unicode's rules for other texts.

The tokenisers of rouge-score, 13a and SQuAD are the defaults of `evaluate` and sacrebleu. They know ASCII letters only,
or split at spaces and ASCII punctuation only: of other texts they see nothing, or a single word.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bench.metrics.writing_systems import (
    CHINESE,
    EMPTY,
    ENGLISH,
    JAPANESE,
    KOREAN,
    LATIN,
    SYMBOLS,
    WORDS,
    WritingSystem,
    detect_writing_systems,
    graphemes,
    has_mecab,
    unicode_tokens,
)

if TYPE_CHECKING:
    from rouge_score.tokenizers import DefaultTokenizer

Tokens = Callable[[str], list[str]]
OWN_ROUGE = "rouge-score's own, with stemming"
SQUAD = "SQuAD's words"
UNICODE, CHARACTERS, BOTH = "Unicode words", "characters", "characters; other scripts by words"


@dataclass(frozen=True)
class Tokenisers:
    """The tokenisers for one writing system, named for a report; `bleu` is sacrebleu's name."""

    rouge: str
    bleu: str
    words: str


@dataclass(frozen=True)
class Split:
    """The references in one writing system, and how they and their answers are tokenised."""

    title: str
    rows: int
    tokenisers: Tokenisers


def tokenisers_of(kind: str) -> Tokenisers:
    """The tokenisers for a writing system; sacrebleu's for Japanese and Korean need its MeCab packages."""
    if kind == ENGLISH:
        return Tokenisers(OWN_ROUGE, "13a", SQUAD)
    seen = {LATIN: UNICODE, WORDS: UNICODE, KOREAN: UNICODE, SYMBOLS: CHARACTERS}.get(kind, BOTH)
    bleu = {LATIN: "13a", WORDS: "intl", KOREAN: "intl", CHINESE: "zh"}.get(kind, "char")
    if (kind == JAPANESE and has_mecab("ja")) or (kind == KOREAN and has_mecab("ko")):
        bleu = "ja-mecab" if kind == JAPANESE else "ko-mecab"
    return Tokenisers(seen, bleu, seen)


def splits(references: Sequence[str]) -> list[Split]:
    """How a set's references are tokenised, the most frequent writing system first; empty references are left out."""
    counts: dict[WritingSystem, int] = {}
    for writing in detect_writing_systems(tuple(references)):
        counts[writing] = counts.get(writing, 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return [Split(_title(each), rows, tokenisers_of(each.kind)) for each, rows in ordered if each.kind != EMPTY]


def rouge_tokens(kind: str) -> Tokens:
    """The tokens that ROUGE compares."""
    return _own_rouge_tokens if kind == ENGLISH else answer_tokens(kind)


def answer_tokens(kind: str) -> Tokens:
    """The tokens that token F1 and exact match compare."""
    return {ENGLISH: squad_tokens, SYMBOLS: graphemes}.get(kind, unicode_tokens)


def squad_tokens(text: str) -> list[str]:
    """Words as in SQuAD's metrics: lower case, without ASCII punctuation and English articles."""
    plain = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _own_rouge_tokens(text: str) -> list[str]:
    tokens: list[str] = _own_rouge().tokenize(text)
    return tokens


@cache
def _own_rouge() -> "DefaultTokenizer":
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def _title(writing: WritingSystem) -> str:
    titles = {
        ENGLISH: "Latin letters, English or in ASCII" if writing.script else "digits",
        LATIN: "Latin letters, not English" if writing.script else "digits",
        SYMBOLS: "symbols",
    }
    return titles.get(writing.kind, writing.script or "digits")


_PUNCTUATION = str.maketrans("", "", string.punctuation)
