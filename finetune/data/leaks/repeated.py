"""Decides whether a row repeats a test row's answer to what may be the same question, paraphrased.

If the answers are alike, ordinary words may differ; a different name, number or negation makes another row.
"""

from collections import Counter
from collections.abc import Sequence

from finetune.data.duplicates.words import COMMON_WORDS, NEGATIONS, is_exact
from finetune.data.leaks.asking import asks_otherwise
from finetune.data.leaks.misread import misread_beside_answer
from finetune.data.leaks.ordinary import is_ordinary
from finetune.data.leaks.rows import Asked, Likeness, Row
from finetune.data.leaks.synonyms import are_synonyms

MIN_ANSWER, MIN_SAME = 12, 0.65  # words from which an answer is evidence; share of it in common
MIN_SHORT, SAME_SHORT = 6, 0.8  # the same for a shorter answer
TURNING = NEGATIONS | frozenset((
    "unless", "except", "only", "before", "after", "more", "less", "most", "least", "high", "higher", "highest", "low",
    "lower", "lowest", "left", "right", "increase", "increases", "increased", "decrease", "decreases", "decreased",
    "rarely", "above", "below", "worse", "better", "worsen", "worsens",
))  # fmt: skip


def repeated_answer(row: Row, asked: Asked) -> Likeness | None:
    """Match the answers, unless the questions are about different things."""
    shorter, longer = sorted((len(asked.answer), len(row.answer)))
    words = min(asked.answer.count(" "), row.answer.count(" ")) + 1
    if 2 * shorter < longer or words < MIN_SHORT:
        return None
    score = row.alike_answer(asked, MIN_SAME if words >= MIN_ANSWER else SAME_SHORT)
    if not score:
        return None
    if _in_other_words(row, asked) or (row.misread and misread_beside_answer(row, asked.question)):
        return Likeness("similar row", score, row.words)
    return None


def _in_other_words(row: Row, asked: Asked) -> bool:
    """True if the words that differ only shape the question; a name or a number does not."""
    own = _about(row, asked)
    question = asked.question.words
    missing, extras = Counter(question) - Counter(own), Counter(own) - Counter(question)
    if {*missing, *extras} & NEGATIONS or asks_otherwise(question, own):
        return False
    less = [word for word in missing.elements() if word not in COMMON_WORDS]
    more = [word for word in extras.elements() if not row.empty(word)]
    less, more = _unmatched(less, more, question, own)
    if any(map(is_exact, (*less, *more))) or any(word in TURNING for word in (more or less)):
        return False
    if all(word in less for word in asked.question.content):
        return False
    if any(row.vocabulary.plain(word) for word in more) and any(map(row.vocabulary.plain, less)):
        return False  # each question asks about something of its own
    if any(word.endswith("ing") for word in more) and not any(word.endswith("ing") for word in less):
        return False  # a gerund like "tracing" does not replace a noun
    return all(_tells_how(row, question, word) for word in less) and all(map(is_ordinary, more))


def _about(row: Row, asked: Asked) -> list[str]:
    """Return the words of the passages that share a word with the question."""
    about = asked.question.set - COMMON_WORDS
    return [word for passage in row.passages if not about.isdisjoint(passage) for word in passage]


def _unmatched(
    less: list[str], more: list[str], question: Sequence[str], own: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Remove synonyms, and abbreviations with the words they abbreviate, from the words that differ."""
    for left, right, text in ((less, more, question), (more, less, own)):
        for short in [word for word in right if 1 < len(word) <= 5]:
            place = "".join(word[0] for word in text).find(short)
            if place >= 0 and any(word in left for word in text[place : place + len(short)]):
                right.remove(short)
                for word in text[place : place + len(short)]:
                    if word in left:
                        left.remove(word)
    rest = []
    for word in less:
        mate = next((each for each in more if are_synonyms(word, each)), None)
        if mate is None:
            rest.append(word)
        else:
            more.remove(mate)
    return rest, more


def _tells_how(row: Row, words: Sequence[str], word: str) -> bool:
    """True for an ordinary word, and for a plain one outside a name, unlike "disease" in "Addison disease"."""
    if is_ordinary(word):
        return True
    place = words.index(word)
    beside = words[max(0, place - 1) : place + 2]
    return all(each in COMMON_WORDS or row.vocabulary.plain(each) or is_ordinary(each) for each in beside)
