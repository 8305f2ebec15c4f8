"""Decides whether a row repeats a test row's answer to what may be the same question, paraphrased.

If the answers are alike, ordinary words may differ; a different name, number or negation makes another row.
"""

from collections import Counter
from collections.abc import Sequence

from finetune.data.duplicates.word_classes import COMMON_WORDS, NEGATIONS, has_no_misprints
from finetune.data.leaks.garbled import may_contain_garbled_question
from finetune.data.leaks.ordinary_words import is_ordinary
from finetune.data.leaks.question_form import asks_something_else
from finetune.data.leaks.rows import Match, TestRow, TrainRow
from finetune.data.leaks.synonyms import are_synonyms

MIN_ANSWER, MIN_SAME = 12, 0.65  # words from which an answer is evidence; share of it in common
MIN_SHORT, SAME_SHORT = 6, 0.8  # the same for a shorter answer
REVERSING = NEGATIONS | frozenset((
    "unless", "except", "only", "before", "after", "more", "less", "most", "least", "high", "higher", "highest", "low",
    "lower", "lowest", "left", "right", "increase", "increases", "increased", "decrease", "decreases", "decreased",
    "rarely", "above", "below", "worse", "better", "worsen", "worsens",
))  # fmt: skip


def match_answer(row: TrainRow, test: TestRow) -> Match | None:
    """Match the answers, unless the questions are about different things."""
    tested, own = len(test.answer), len(row.answer)
    if 2 * tested < own or 2 * own < tested:
        return None
    words = min(test.spaces, row.spaces) + 1
    if words < MIN_SHORT:
        return None
    score = row.answer_similarity(test, MIN_SAME if words >= MIN_ANSWER else SAME_SHORT)
    if not score:
        return None
    if _is_paraphrase(row, test) or (row.is_garbled and may_contain_garbled_question(row, test.question)):
        return Match("similar row", score, row.words)
    return None


def _is_paraphrase(row: TrainRow, test: TestRow) -> bool:
    """True if the words that differ only shape the question; a name or a number does not."""
    own = _about(row, test)
    question = test.question.words
    missing, extras = Counter(question) - Counter(own), Counter(own) - Counter(question)
    if {*missing, *extras} & NEGATIONS or asks_something_else(question, own):
        return False
    less = [word for word in missing.elements() if word not in COMMON_WORDS]
    more = [word for word in extras.elements() if not row.is_filler(word)]
    less, more = _unmatched(less, more, question, own)
    if any(map(has_no_misprints, (*less, *more))) or any(word in REVERSING for word in (more or less)):
        return False
    if all(word in less for word in test.question.content):
        return False
    if any(row.vocabulary.shapes_questions(word) for word in more) and any(map(row.vocabulary.shapes_questions, less)):
        return False  # each question asks about something of its own
    if any(word.endswith("ing") for word in more) and not any(word.endswith("ing") for word in less):
        return False  # a gerund like "tracing" does not replace a noun
    return all(_shapes_question(row, question, word) for word in less) and all(map(is_ordinary, more))


def _about(row: TrainRow, test: TestRow) -> list[str]:
    """Return the words of the passages that share a word with the question."""
    about = test.question.set - COMMON_WORDS
    return [word for passage in row.passages if not about.isdisjoint(passage) for word in passage]


def _unmatched(
    less: list[str], more: list[str], question: Sequence[str], own: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Remove synonyms, and abbreviations with the words they abbreviate, from the words that differ."""
    for left, right, text in ((less, more, question), (more, less, own)):
        for short in [word for word in right if 1 < len(word) <= 5]:
            start = "".join(word[0] for word in text).find(short)
            if start >= 0 and any(word in left for word in text[start : start + len(short)]):
                right.remove(short)
                for word in text[start : start + len(short)]:
                    if word in left:
                        left.remove(word)
    rest = []
    for word in less:
        synonym = next((other for other in more if are_synonyms(word, other)), None)
        if synonym is None:
            rest.append(word)
        else:
            more.remove(synonym)
    return rest, more


def _shapes_question(row: TrainRow, words: Sequence[str], word: str) -> bool:
    """True for an ordinary word, and for a plain one outside a name, unlike "disease" in "Addison disease"."""
    if is_ordinary(word):
        return True
    index = words.index(word)
    beside = words[max(0, index - 1) : index + 2]
    return all(near in COMMON_WORDS or row.vocabulary.shapes_questions(near) or is_ordinary(near) for near in beside)
