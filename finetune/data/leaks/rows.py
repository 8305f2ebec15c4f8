"""A test row and a training row with cached properties, to compare one with several others. Imports rapidfuzz."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from finetune.data.duplicates.content_keys import RowContent
from finetune.data.duplicates.word_classes import COMMON_WORDS
from finetune.data.leaks.question_form import letter_similarity
from finetune.data.leaks.vocabulary import Vocabulary

LONG_QUESTION, PART = 60, 12  # words from which a question is compared in parts, and minimum content words of a part
MIN_GARBLED_WORDS, GARBLED_SHARE = 2, 0.15  # count and share of unknown words from which a row is garbled
GARBLED_INPUT_SHARE = 0.25
MAYBE_GARBLED_SHARE = 0.2  # share of unknown words in the input from which a row may be garbled
MOST_ANSWER = 1500  # letters


@dataclass(frozen=True)
class Match:
    """The match of a training row with a test row: kind, score from 0 to 1, and the row's words for the question."""

    kind: str
    score: float
    words: list[str]


@dataclass(frozen=True)
class QuestionPart:
    """Words that have to match together: a question, or some sentences of a long one."""

    words: list[str]
    last: bool = True  # the last part mostly contains the actual question

    @cached_property
    def text(self) -> str:
        """The words, separated and surrounded by spaces."""
        return f" {' '.join(self.words)} "

    @cached_property
    def set(self) -> frozenset[str]:
        """The distinct words."""
        return frozenset(self.words)

    @cached_property
    def content(self) -> list[str]:
        """The content words; all words if there are none."""
        words = [word for word in dict.fromkeys(self.words) if word not in COMMON_WORDS]
        if len(self.words[-1]) == 1 and self.words[-1] not in words:  # hepatitis A
            words.append(self.words[-1])
        return words or list(dict.fromkeys(self.words))

    @cached_property
    def joined(self) -> str:
        """Letters and digits alone: "3.5" and "35" are equal here, as where punctuation was lost."""
        return "".join(filter(str.isalnum, self.words))

    @cached_property
    def content_set(self) -> frozenset[str]:
        """The content words."""
        return frozenset(self.content)


class TestRow:
    """A test row: the passages of its question, without those that all test rows share, and its answer."""

    def __init__(self, passages: Sequence[str], answer: str) -> None:
        self._passages = passages
        self.question = QuestionPart(" ".join(passages).split())
        self.answer, self.spaces = answer, answer.count(" ")

    @cached_property
    def parts(self) -> list[QuestionPart]:
        """The parts to match separately: the whole question, or passages of a long one, the last passage first."""
        if len(self.question.words) < LONG_QUESTION or len(self._passages) == 1:
            return [self.question]
        parts, words = [QuestionPart(self._passages[-1].split())], list[str]()
        for passage in self._passages[:-1]:
            words += passage.split()
            if sum(word not in COMMON_WORDS for word in words) >= PART:
                parts.append(QuestionPart(words, last=False))
                words = []
        if words:
            parts.append(QuestionPart(words, last=False))
        return parts

    @cached_property
    def answer_words(self) -> Counter[str]:
        """The words of the answer with their counts."""
        return Counter(self.answer.split())


class TrainRow:
    """A training row; with `whole`, its answer is treated as a text that may contain a question."""

    def __init__(self, content: RowContent, vocabulary: Vocabulary, *, whole: bool = False) -> None:
        passages = [each for turn in content.prompt for each in turn]
        self.passages = [each.split() for each in (content.answer if whole or not passages else passages)]
        self.words = [word for passage in self.passages for word in passage]
        self.ends = {*accumulate(map(len, self.passages))}
        self.whole = whole
        self.answer = "" if whole else " ".join(content.answer)
        self.spaces = self.answer.count(" ")
        self.vocabulary = vocabulary

    @cached_property
    def text(self) -> str:
        """The input, words separated and surrounded by spaces."""
        return f" {' '.join(self.words)} "

    @cached_property
    def joined(self) -> str:
        """Letters and digits alone."""
        return "".join(filter(str.isalnum, self.words))

    @cached_property
    def set(self) -> set[str]:
        """The distinct words of the input."""
        return set(self.words)

    @cached_property
    def answer_words(self) -> Counter[str]:
        """The words of the answer with their counts."""
        return Counter(self.answer.split())

    @cached_property
    def untested_words(self) -> list[str]:
        """Possible misprints: words of the input that no test row has."""
        return sorted(self.vocabulary.untested(self.set))

    @cached_property
    def may_be_garbled(self) -> bool:
        """True if so many words are in no test row and unknown to the data that the row may be garbled."""
        words = [word for word in self.set if len(word) > 1 and word not in COMMON_WORDS]
        least = max(1, MAYBE_GARBLED_SHARE * len(words))
        untested = self.vocabulary.untested(words)  # many times cheaper than to ask which words are unknown
        return len(untested) >= least and sum(map(self.vocabulary.is_unknown, untested)) >= least

    @cached_property
    def is_garbled(self) -> bool:
        """True if many words of the row, or several of its input, are unknown: it was typed or scanned badly."""
        input_words = {word for word in self.set if len(word) > 2} - COMMON_WORDS
        answer = {word for word in self.answer_words if len(word) > 3}
        unknown = set(filter(self.vocabulary.is_unknown, input_words | answer))
        if len(unknown) >= GARBLED_SHARE * len(input_words | answer) + 1:
            return True
        return len(unknown & input_words) >= max(MIN_GARBLED_WORDS, GARBLED_INPUT_SHARE * len(input_words))

    def is_known(self, word: str) -> bool:
        """True for words of the data, and for words repeated in the answer: a misprint does not occur twice."""
        return word in self.vocabulary.known or word in self.answer_words

    def is_filler(self, word: str) -> bool:
        """True for a word without content, here or in general."""
        return word in COMMON_WORDS or word in self.vocabulary.constant

    def answer_similarity(self, test: TestRow, least: float) -> float:
        """Return the share of words, or letters, that the answers have in common; 0 if it is below `least`."""
        common = len(self.answer_words.keys() & test.answer_words.keys())
        fewer = min(len(self.answer_words), len(test.answer_words))
        shared = 0.0
        if 2 * common >= least * fewer:
            total = (test.answer_words & self.answer_words).total()
            shared = 2 * total / (test.answer_words.total() + self.answer_words.total())
        elif not self.untested_words:
            return 0.0
        if shared < least:
            shared = max(shared, letter_similarity(test.answer[:MOST_ANSWER], self.answer[:MOST_ANSWER], least))
        return shared if shared >= least else 0.0
