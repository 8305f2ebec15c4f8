"""The form of a question: its opener, negations and numbers. Imports rapidfuzz."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from finetune.data.duplicates.word_classes import COMMON_WORDS, NEGATIONS, has_no_misprints

OPENERS = frozenset((
    "what", "which", "who", "how", "when", "where", "why", "is", "are", "do", "does", "did", "can", "could", "should",
    "will", "would", "may",
))  # fmt: skip
STRICT_OPENERS = frozenset(("who", "how", "when", "where", "why"))
FIRST_WORDS = 3  # a question may be headed "Question:"
PREFIXES = (("hyper", "hypo"), ("intra", "inter"), ("pre", "post"))


def asks_something_else(question: Sequence[str], words: Sequence[str]) -> bool:
    """True if the openers differ: why in place of when, or added: "is it" is not "why is it"."""
    one, other = (Counter(word for word in text if word in STRICT_OPENERS) for text in (question, words))
    advice, other_advice = (asks_for_advice(text) for text in (question, words))
    if (other_advice and not advice) or (advice and not other_advice and not {"is", "are"}.isdisjoint(words)):
        return True
    return bool(other - one) and (bool(one) or not OPENERS.isdisjoint(question[:FIRST_WORDS]))


def asks_for_advice(words: Sequence[str]) -> bool:
    """True for a question that asks for advice."""
    return any(pair == ("to", "do") for pair in pairwise(words))


def negations(words: Sequence[str]) -> Counter[str]:
    """Count the words that negate."""
    return Counter(word for word in words if word in NEGATIONS)


def has_opposite_prefix(one: str, other: str) -> bool:
    """True for opposite prefixes: hyper- and hypo-."""
    return any(
        (one.startswith(first) and other.startswith(second)) or (one.startswith(second) and other.startswith(first))
        for first, second in PREFIXES
    )


def digits(word: str) -> str:
    """Return the digits of a word."""
    return "".join(filter(str.isdigit, word))


def numbers(words: Sequence[str]) -> Counter[str]:
    """Count numbers, symbols and single letters."""
    return Counter(word for word in words if has_no_misprints(word) and word not in COMMON_WORDS)


def letter_similarity(one: Sequence[str] | str, other: Sequence[str] | str, least: float = 0.0) -> float:
    """Return the share of letters in common, in order or with sorted words; 0 if it is below `least`."""
    from rapidfuzz import fuzz

    texts = [text if isinstance(text, str) else " ".join(text) for text in (one, other)]
    cutoff = 100 * least
    return max(fuzz.ratio(*texts, score_cutoff=cutoff), fuzz.token_sort_ratio(*texts, score_cutoff=cutoff)) / 100
