"""A test row and a training row, with what is needed to compare one with several others. Names rapidfuzz."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from finetune.data.duplicates.content import RowContent
from finetune.data.duplicates.words import COMMON_WORDS
from finetune.data.leaks.asking import alike
from finetune.data.leaks.vocabulary import Vocabulary

LONG_QUESTION, PART = 60, 12  # words of a question that is compared in parts, content words of a part at least
MIN_MISREAD, MISREAD_SHARE = 2, 0.15  # of a row's words are no words of the data: it was typed or scanned badly
MISREAD_INPUT = 0.25
MAY_BE_MISREAD = 0.2  # of the input's words are none of the test rows'
MOST_ANSWER = 1500  # letters


@dataclass(frozen=True)
class Likeness:
    """What a training row has of a test row: the kind, a score from 0 to 1, the words in the question's place."""

    kind: str
    score: float
    words: list[str]


@dataclass(frozen=True)
class Part:
    """Words that have to be found together: a question, or some sentences of a long one."""

    words: list[str]
    last: bool = True  # which mostly is what asks

    @cached_property
    def text(self) -> str:
        """The words with spaces about them."""
        return f" {' '.join(self.words)} "

    @cached_property
    def set(self) -> frozenset[str]:
        """The words."""
        return frozenset(self.words)

    @cached_property
    def content(self) -> list[str]:
        """The words that say something; all of them where none does."""
        words = [word for word in dict.fromkeys(self.words) if word not in COMMON_WORDS]
        if len(self.words[-1]) == 1 and self.words[-1] not in words:  # hepatitis A
            words.append(self.words[-1])
        return words or list(dict.fromkeys(self.words))


class Asked:
    """A test row: its question's passages, without what all test rows say, and its answer."""

    def __init__(self, passages: Sequence[str], answer: str) -> None:
        self._passages = passages
        self.question = Part(" ".join(passages).split())
        self.answer = answer

    @cached_property
    def parts(self) -> list[Part]:
        """What has to be found, each by itself: the question, or the passages of a long one; the last one first."""
        if len(self.question.words) < LONG_QUESTION or len(self._passages) == 1:
            return [self.question]
        parts, words = [Part(self._passages[-1].split())], list[str]()
        for passage in self._passages[:-1]:
            words += passage.split()
            if sum(word not in COMMON_WORDS for word in words) >= PART:
                parts.append(Part(words, last=False))
                words = []
        if words:
            parts.append(Part(words, last=False))
        return parts

    @cached_property
    def answer_words(self) -> Counter[str]:
        """How often the answer has each word."""
        return Counter(self.answer.split())


class Row:
    """A training row; `whole`: its answer as a text that may contain a question."""

    def __init__(self, content: RowContent, vocabulary: Vocabulary, *, whole: bool = False) -> None:
        passages = [each for turn in content.prompt for each in turn]
        self.passages = [each.split() for each in (content.answer if whole or not passages else passages)]
        self.words = [word for passage in self.passages for word in passage]
        self.ends = {*accumulate(map(len, self.passages))}
        self.whole = whole
        self.answer = "" if whole else " ".join(content.answer)
        self.vocabulary = vocabulary

    @cached_property
    def text(self) -> str:
        """The input, with spaces about it."""
        return f" {' '.join(self.words)} "

    @cached_property
    def set(self) -> set[str]:
        """The words of the input."""
        return set(self.words)

    @cached_property
    def answer_words(self) -> Counter[str]:
        """How often the answer has each word."""
        return Counter(self.answer.split())

    @cached_property
    def suspects(self) -> list[str]:
        """Words of the input that may be misprints: no test row has them."""
        return sorted(self.vocabulary.untested(self.set))

    @cached_property
    def may_be_misread(self) -> bool:
        """True if so many words are none of the test rows' that the row may be scanned badly."""
        words = [word for word in self.set if len(word) > 1 and word not in COMMON_WORDS]
        return len(self.vocabulary.untested(words)) >= max(1, MAY_BE_MISREAD * len(words))

    @cached_property
    def misread(self) -> bool:
        """True if many of the row's words, or several of its input's, are no words."""
        asked = {word for word in self.set if len(word) > 2} - COMMON_WORDS
        answer = {word for word in self.answer_words if len(word) > 3}
        odd = set(filter(self.vocabulary.is_odd, asked | answer))
        many = MISREAD_SHARE * len(asked | answer) + 1
        return len(odd) >= many or len(odd & asked) >= max(MIN_MISREAD, MISREAD_INPUT * len(asked))

    def real(self, word: str) -> bool:
        """True for words of the data, and for what the answer repeats: a misprint is not made twice."""
        return word in self.vocabulary.known or word in self.answer_words

    def empty(self, word: str) -> bool:
        """True for a word that says little, here or at all."""
        return word in COMMON_WORDS or word in self.vocabulary.constant

    def alike_answer(self, asked: Asked, least: float) -> float:
        """The share of the answer's words, or letters, in common; 0 where it is less than asked for."""
        common = len(self.answer_words.keys() & asked.answer_words.keys())
        fewer = min(len(self.answer_words), len(asked.answer_words))
        shared = 0.0
        if 2 * common >= least * fewer:
            total = (asked.answer_words & self.answer_words).total()
            shared = 2 * total / (asked.answer_words.total() + self.answer_words.total())
        elif not self.suspects:
            return 0.0
        if shared < least:
            shared = max(shared, alike(asked.answer[:MOST_ANSWER], self.answer[:MOST_ANSWER], least))
        return shared if shared >= least else 0.0
