"""Row counts of words: distinguishes words from misprints, and finds words that only shape a question.

Imports rapidfuzz.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from functools import cached_property

from finetune.data.duplicates.content_keys import RowContent
from finetune.data.duplicates.duplicates import KNOWN_ROWS

PLAIN_ROWS, PLAIN_SHARE = 5, 0.02
MISPRINT_RATIO = 10  # a word this many times as frequent may be what a rare word misprints
TWO_ERRORS_LETTERS = 6  # letters; in a word of this length two may be wrong


class Vocabulary:
    """Words of the test rows, which are assumed correct, and of training rows, which may be garbled."""

    def __init__(self) -> None:
        self._test: Counter[str] = Counter()
        self._train: Counter[str] = Counter()
        self._questions: Counter[str] = Counter()
        self._asked = 0
        self._misprints: dict[str, bool] = {}
        self.constant: set[str] = set()  # words of passages that all test rows share

    def add(self, content: RowContent, *, test: bool) -> None:
        """Count a row's words."""
        (self._test if test else self._train).update({*" ".join(content.turns()).split()})
        self.__dict__.pop("known", None)
        self.__dict__.pop("_frequent", None)

    def add_question(self, words: Sequence[str]) -> None:
        """Count the words of a test row's question."""
        self._questions.update(set(words))
        self._asked += 1

    def shapes_questions(self, word: str) -> bool:
        """True for words of many test questions, which shape a question but are not its topic."""
        return self._questions[word] >= max(PLAIN_ROWS, PLAIN_SHARE * self._asked)

    def may_be_misprint_of(self, word: str, by: str) -> bool:
        """True for a word in no test row and few training rows that is likely a misprint of `by`."""
        return not self._test[word] and self._rows(by) >= MISPRINT_RATIO * self._train[word]

    def untested(self, words: Iterable[str]) -> list[str]:
        """Return the words that no test row has."""
        return [word for word in words if word not in self._test]

    @cached_property
    def known(self) -> Set[str]:
        """Words of the test rows and of several training rows."""
        return {*self._test, *(word for word, rows in self._train.items() if rows >= KNOWN_ROWS)}

    def is_unknown(self, word: str) -> bool:
        """True for a word unknown to the data, or a misprint that several training rows share."""
        if word in self._test:
            return False
        if word not in self._misprints:
            self._misprints[word] = word not in self.known or self._is_misprint(word)
        return self._misprints[word]

    def _is_misprint(self, word: str) -> bool:
        from rapidfuzz import process
        from rapidfuzz.distance import Levenshtein

        max_errors = 2 if len(word) >= TWO_ERRORS_LETTERS else 1
        lengths = range(len(word) - max_errors, len(word) + max_errors + 1)
        near = [candidate for length in lengths for candidate in self._frequent.get(length, ())]
        nearest = process.extractOne(word, near, scorer=Levenshtein.distance, score_cutoff=max_errors)
        return nearest is not None and self._rows(nearest[0]) >= MISPRINT_RATIO * self._train[word]

    @cached_property
    def _frequent(self) -> dict[int, list[str]]:
        """Words that others may misprint, by length."""
        words: dict[int, list[str]] = {}
        for word in self._test:
            if self._rows(word) >= MISPRINT_RATIO * KNOWN_ROWS:
                words.setdefault(len(word), []).append(word)
        return words

    def _rows(self, word: str) -> int:
        return self._test[word] + self._train[word]
