"""Whether a training row asks what a test row asks: aligned word by word, and where it is garbled, letter by letter.

A name, a number or a negation that differs makes another question, whatever pattern is shared. Names rapidfuzz.
"""

from collections import Counter
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from finetune.data.asking import (
    OPENERS,
    alike,
    asks_otherwise,
    digits,
    negations,
    numbers,
    numerals,
    prefixed_otherwise,
)
from finetune.data.content import RowContent
from finetune.data.letters import Opposite, opposite
from finetune.data.synonyms import are_synonyms, is_general, synonym_groups
from finetune.data.words import COMMON_WORDS, NEGATIONS, TURNING_WORDS, is_exact, one_letter_off

LONG = 10  # content words: of a longer question one in ten may differ
GARBLED, GARBLED_INPUT = 0.15, 0.25  # of a row's words are no words of the data: it was typed or scanned badly
MIN_WHOLE = 0.85  # of them, in an answer
MIN_ALIKE = 0.7  # of the letters of a garbled question
MIN_ANSWER, MIN_SAME = 12, 0.75  # words of an answer that is evidence; the share of its letters in common
NAMED = 4  # content words
KNOWN_ROWS = 3
PLAIN_ROWS, PLAIN_SHARE = 5, 0.02
MIN_GARBLED = 2  # words that are none: with fewer, one or two letters of a long word may be wrong
WRONG_LETTERS, WRONG_PLAIN = 0.4, 0.6  # of a garbled word, and of one that only tells how is asked
FEW_WRONG = 5  # one garbled word in as many may be past knowing
SHORT_WORD = 5  # letters
LONG_WORD = 7  # letters: two may be wrong where nothing else is
MIN_REAL = 4  # letters: a shorter word may be what is left of another
MIN_SHARED, MOST_ANSWER = 0.5, 1500  # of an answer's words, before its letters are compared; letters
CONTINUING = frozenset((
    "and", "or", "please", "my", "thanks", "thank", "explain", "tell", "answer", "give", "describe", "because", "but",
    "so", "briefly", "now", "think", "then",
))  # fmt: skip


class Vocabulary:
    """In how many rows each word is: what is a word and what a misprint, and which words only tell how is asked."""

    def __init__(self) -> None:
        self._test: Counter[str] = Counter()
        self._train: Counter[str] = Counter()
        self._questions: Counter[str] = Counter()
        self._asked = 0
        self._known: set[str] | None = None
        self.constant: set[str] = set()  # words of what all test rows say

    def add(self, content: RowContent, *, test: bool) -> None:
        """Count a row's words."""
        words = {word for turn in content.turns() for word in turn.split()}
        (self._test if test else self._train).update(words)
        self._known = None

    def add_question(self, words: Sequence[str]) -> None:
        """Count the words of a test row's question."""
        self._questions.update(set(words))
        self._asked += 1

    def plain(self, word: str) -> bool:
        """True for words of many test questions, which tell how is asked and not what about."""
        return self._questions[word] >= max(PLAIN_ROWS, PLAIN_SHARE * self._asked)

    @property
    def known(self) -> Set[str]:
        """Words of the test rows and of several training rows."""
        if self._known is None:
            self._known = {*self._test, *(word for word, rows in self._train.items() if rows >= KNOWN_ROWS)}
        return self._known


@dataclass(frozen=True)
class Asked:
    """A test row: the words of its question, without what all test rows say, and its answer."""

    question: list[str]
    answer: str

    @cached_property
    def answer_words(self) -> Counter[str]:
        """How often the answer has each word."""
        return Counter(self.answer.split())

    @cached_property
    def content(self) -> list[str]:
        """The question's words that say something; all of them where none does."""
        words = [word for word in dict.fromkeys(self.question) if word not in COMMON_WORDS]
        if len(self.question[-1]) == 1 and self.question[-1] not in words:  # hepatitis A
            words.append(self.question[-1])
        return words or list(dict.fromkeys(self.question))


@dataclass(frozen=True)
class Likeness:
    """What a training row has of a test row: the kind, a score from 0 to 1, the words in the question's place."""

    kind: str
    score: float
    words: list[str]


class Candidate:
    """A training row, with what is needed to compare it with several test rows."""

    def __init__(self, content: RowContent, vocabulary: Vocabulary, *, whole: bool = False) -> None:
        passages = [each for turn in content.prompt for each in turn] or content.answer
        if whole:
            passages = content.answer
        self.words = [word for passage in passages for word in passage.split()]
        self._ends: set[int] = set()
        place = 0
        for passage in passages:
            place += passage.count(" ") + 1
            self._ends.add(place)
        self._whole = whole
        self.answer = "" if whole else " ".join(content.answer)
        self._vocabulary = vocabulary

    @cached_property
    def _set(self) -> set[str]:
        return set(self.words)

    @cached_property
    def garbled(self) -> bool:
        """True if many of the row's words, or several of its input's, are no words."""
        asked = {word for word in self._set if len(word) > 2} - COMMON_WORDS
        words = asked.union(word for word in self._answer_words if len(word) > 3)
        odd, odd_asked = (len(each - self._vocabulary.known) for each in (words, asked))
        return odd >= GARBLED * len(words) + 1 or odd_asked >= max(MIN_GARBLED, GARBLED_INPUT * len(asked))

    def likeness(self, asked: Asked) -> Likeness | None:
        """How the row leaks the test row, if it does."""
        mates, missing = self._mates(asked)
        found = self._by_words(asked, mates, missing)
        if not found and self._misprinted(asked):
            found = self._by_letters(asked)
        return found or self._by_answer(asked, mates, missing)

    @cached_property
    def _odd(self) -> list[str]:
        """Words of the input that are none of the data's."""
        return [word for word in self._set - self._vocabulary.known if len(word) > 2 and word not in self._answer_words]

    def _misprinted(self, asked: Asked) -> bool:
        """True if the row has words that are none, about as many as it lacks of the question."""
        absent = sum(word not in self._set for word in asked.content)
        if not absent:
            return self.garbled and len(self._odd) >= MIN_GARBLED
        return bool(self._odd) and (self.garbled or absent <= 2 * len(self._odd))

    def _mates(self, asked: Asked) -> tuple[dict[str, str], list[str]]:
        """Words of the row that stand for words of the question, and the question's that nothing stands for."""
        mates, missing = {word: word for word in asked.question}, []
        absent = [word for word in asked.content if word not in self._set]
        if len(absent) > 1 + len(asked.content) // 2:  # too many to be other words for the same
            return mates, absent
        for word in absent:
            mate = None if is_exact(word) else self._mate(word, mates)
            if mate is None:
                missing.append(word)
            else:  # one word may stand for two
                mates.setdefault(mate, word)
        return mates, missing

    def _mate(self, asked: str, taken: Collection[str]) -> str | None:
        """A word of the row that is a word of a question, misprinted or another for the same."""
        for group in synonym_groups(asked):
            if self._groups.get(group):
                return self._groups[group][0]
        near = (word for size in (-1, 0, 1) for word in self._by_length.get(len(asked) + size, ()))
        for word in near:
            if (word[0] == asked[0] or word[-1] == asked[-1]) and word not in taken and one_letter_off(word, asked):
                plural = f"{word}s" == asked or word == f"{asked}s"
                if plural or not self.real(word):
                    return word
        return None

    @cached_property
    def _by_length(self) -> dict[int, list[str]]:
        words: dict[int, list[str]] = {}
        for word in self._set - COMMON_WORDS:
            words.setdefault(len(word), []).append(word)
        return words

    @cached_property
    def _groups(self) -> dict[int, list[str]]:
        words: dict[int, list[str]] = {}
        for word in self._set:
            for group in synonym_groups(word):
                words.setdefault(group, []).append(word)
        return words

    @cached_property
    def _answer_words(self) -> Counter[str]:
        return Counter(self.answer.split())

    def _empty(self, word: str) -> bool:
        return word in COMMON_WORDS or word in self._vocabulary.constant

    def _by_words(self, asked: Asked, mates: dict[str, str], missing: list[str]) -> Likeness | None:
        wanted = {mates[word] for word in self._set if word in mates}.intersection(asked.content)
        spare = len(asked.content) // LONG
        if len(missing) > spare or not wanted or not all(self._vocabulary.plain(word) for word in missing):
            return None
        window = self._window(wanted, mates)
        if window is None:
            return None
        begin, end = self._extended(*window, asked)
        words = self.words[begin:end]
        extras = [word for word in words if word not in mates and not self._empty(word)]
        others = 0 if missing else spare
        if self.garbled:  # a letter by itself is what is left of a word
            words, extras = ([word for word in each if len(word) > 1 or word in mates] for each in (words, extras))
        if len(extras) > others or not all(map(is_general, extras)) or numbers(words) != numbers(asked.question):
            return None
        if not self._asks_that(asked, begin, end) or any(word in TURNING_WORDS for word in (*missing, *extras)):
            return None
        outside = sum(word not in COMMON_WORDS for word in (*self.words[:begin], *self.words[end:]))
        kind = "similar question" if outside < 2 else "contains the question"
        return Likeness(kind, alike(asked.question, words), words)

    def _asks_that(self, asked: Asked, begin: int, end: int) -> bool:
        """True if the words about the run do not make it another question."""
        opening = self.words[max(begin - 3, *(place for place in (0, *self._ends) if place <= begin)) : end]
        if negations(opening) != negations(asked.question) or asks_otherwise(asked.question, opening):
            return False
        if self._whole and asked.question[0] in OPENERS and asked.question[0] not in opening:
            return False  # a sentence about it, which asks nothing
        named = asked.question[0] not in OPENERS and len(asked.content) >= NAMED
        return len(asked.content) >= LONG or not self._goes_on(begin, end, named=named)

    def _extended(self, begin: int, end: int, asked: Asked) -> tuple[int, int]:
        """The run with the words of the question beside it."""
        while begin > 0 and self.words[begin - 1] in asked.question and begin not in self._ends:
            begin -= 1
        while end < len(self.words) and self.words[end] in asked.question and end not in self._ends:
            end += 1
        return begin, end

    def _window(self, wanted: set[str], mates: dict[str, str]) -> tuple[int, int] | None:
        """The shortest run of words that has all that are wanted, or words that stand for them."""
        counts: Counter[str] = Counter()
        best: tuple[int, int] | None = None
        places: list[tuple[int, str]] = [(place, mates[word]) for place, word in enumerate(self.words) if word in mates]
        places = [(place, word) for place, word in places if word in wanted]
        begin = 0
        for place, word in places:
            counts[word] += 1
            while len(counts) == len(wanted):
                first, opening = places[begin]
                if best is None or place + 1 - first < best[1] - best[0]:
                    best = first, place + 1
                counts[opening] -= 1
                if not counts[opening]:
                    del counts[opening]
                begin += 1
        return best

    def _goes_on(self, begin: int, end: int, *, named: bool) -> bool:
        """True if words just beside make it another question: "causes of gout" goes on with "in women".

        `named`: the question begins with what it is about, and any words may stand before it.
        """
        stop = end
        while stop < len(self.words) and stop not in self._ends:
            stop += 1
        after = self.words[end:stop]
        if len(after) == 1 and len(after[0]) == 1:  # hepatitis A
            return True
        goes_on = end not in self._ends and after and after[0] not in CONTINUING
        if goes_on and any(not self._empty(word) for word in after):
            return True
        while begin > 0 and begin not in self._ends and self.words[begin] not in OPENERS and not named:
            begin -= 1
            if not self._empty(self.words[begin]):
                return True
        return False

    def _by_letters(self, asked: Asked) -> Likeness | None:
        found = opposite(asked.question, self.words, MIN_ALIKE)
        if found is None or len(found.inserted) > len(asked.content) // LONG or not self._letters_fit(asked, found):
            return None
        if any(self.real(word) for word in found.inserted):
            return None
        kind = "similar question" if len(found.words) + 3 > len(self.words) else "contains the question"
        return Likeness(kind, found.score, found.words)

    def real(self, word: str) -> bool:
        """True for words of the data, and for what the answer repeats: a misprint is not made twice."""
        return word in self._vocabulary.known or word in self._answer_words

    def _letters_fit(self, asked: Asked, found: Opposite) -> bool:
        """True if every word of the question that says something has a garbled form of it opposite."""
        opening = [*found.before, *found.words]
        if self._whole and found.score < MIN_WHOLE:
            return False
        if numerals(found.words) != numerals(asked.question) or asks_otherwise(asked.question, opening):
            return False
        if negations(opening) - negations(asked.question):
            return False
        odd = [word for word in found.words if len(word) > 2 and word not in asked.question and not self.real(word)]
        garbled = self.garbled or len(odd) >= MIN_GARBLED
        content, wrong = set(asked.content), 0
        for word, edits, other in zip(asked.question, found.edits, found.pairs, strict=True):
            if other == word or (word not in content and word not in NEGATIONS):
                continue
            longer = len(other) - len(word) if self.real(other) else 0
            if self._other_word(word, other, max(edits, longer), garbled=garbled):
                return False
            wrong += edits > self._most_edits(word, garbled=garbled)
        return wrong <= (len(content) // FEW_WRONG if garbled else 0)

    def _other_word(self, word: str, other: str, edits: int, *, garbled: bool) -> bool:
        """True if what stands opposite a word is another word, not the word with wrong letters."""
        if prefixed_otherwise(word, other) or "" != digits(word) != digits(other) != "":
            return True
        if other == word or len(other) < MIN_REAL or not self.real(other) or are_synonyms(word, other):
            return False
        return edits > 1 or not garbled

    def _most_edits(self, word: str, *, garbled: bool) -> int:
        """In how many letters a word may be wrong."""
        if len(word) == 1 or word.isdigit():
            return 0
        plain = self._vocabulary.plain(word)
        if garbled:
            share = WRONG_PLAIN if plain else WRONG_LETTERS
            return max(1, round(share * len(word)) if plain or len(word) <= SHORT_WORD else int(share * len(word)))
        if plain:
            return max(2, len(word) // 2)
        return 2 if len(word) >= LONG_WORD else 1 if len(word) >= MIN_REAL else 0

    def _by_answer(self, asked: Asked, mates: dict[str, str], missing: list[str]) -> Likeness | None:
        """The same answer, to a question that is not about something else."""
        shorter, longer = sorted((len(asked.answer), len(self.answer)))
        if shorter < longer // 2 or min(asked.answer.count(" "), self.answer.count(" ")) < MIN_ANSWER:
            return None
        if asks_otherwise(asked.question, self.words) or not self._other_words_only(asked, mates, missing):
            return None
        score = self._alike_answer(asked)
        return Likeness("similar row", score, self.words) if score >= MIN_SAME else None

    def _alike_answer(self, asked: Asked) -> float:
        common = (asked.answer_words & self._answer_words).total()
        shared = 2 * common / (asked.answer_words.total() + self._answer_words.total())
        if shared < MIN_SHARED and not self.garbled:
            return shared
        return max(shared, alike(asked.answer[:MOST_ANSWER], self.answer[:MOST_ANSWER]))

    def _other_words_only(self, asked: Asked, mates: dict[str, str], missing: list[str]) -> bool:
        """True if what differs between the questions only tells how is asked; a name or a number does not."""
        extras = [word for word in self.words if word not in mates and not self._empty(word)]
        if self.garbled:
            extras = [word for word in extras if self.real(word) and len(word) >= MIN_REAL]
            missing = [word for word in missing if not self._has_garbled(word)]
        if len(missing) == len(asked.content) or len(extras) > 2 * len(missing):
            return False
        if any(map(is_general, missing)) and any(map(is_general, extras)) and len(missing) == len(extras) == 1:
            return False  # both are known, and not as words for the same
        if any(is_exact(word) or word in TURNING_WORDS for word in (*missing, *extras)):
            return False
        return all(self._tells_how(asked.question, word) for word in missing) and all(
            self._tells_how(self.words, word) for word in extras
        )

    def _tells_how(self, words: list[str], word: str) -> bool:
        """True for a plain word that is not part of a name, as "disease" is in "Addison disease"."""
        if is_general(word):
            return True
        place = words.index(word)
        beside = words[max(0, place - 1) : place + 2]
        return all(each in COMMON_WORDS or self._vocabulary.plain(each) or is_general(each) for each in beside)

    def _has_garbled(self, word: str) -> bool:
        from rapidfuzz import fuzz

        others = (each for each in self._set if not self.real(each))
        return any(fuzz.ratio(word, each) >= 70 for each in others)
