"""Whether a training row asks what a test row asks: aligned word by word, and where it is garbled, letter by letter.

A name, a number or a negation that differs makes another question, whatever pattern is shared. Names rapidfuzz.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from finetune.data.content import RowContent
from finetune.data.synonyms import are_synonyms
from finetune.data.words import COMMON_WORDS, is_exact, one_letter_off

LONG = 10  # content words: of a longer question one in ten may differ
GARBLED = 0.15  # of a row's words are no words of the data: it was typed or scanned badly
MIN_ALIKE = 0.72  # of the letters of a garbled question
MIN_ANSWER, MIN_SAME = 12, 0.75  # words of an answer that is evidence; the share of its letters in common
KNOWN_ROWS = 3
PLAIN_ROWS, PLAIN_SHARE = 5, 0.02
MIN_GARBLED = 2  # words of a question; a single one is another name
EDGE = 6  # letters that a garbled question may be longer by
ODD_WORD = 5  # letters: a shorter one may be what is left of another
MAX_WORDS = 400  # of a training row's input, from its start and from its end
OPENERS = frozenset((
    "what", "which", "who", "how", "when", "where", "why", "is", "are", "do", "does", "did", "can", "could", "should",
    "will", "would", "may",
))  # fmt: skip
STRICT_OPENERS = frozenset(("who", "how", "when", "where", "why"))
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

    def add(self, content: RowContent, *, test: bool) -> None:
        """Count a row's words."""
        words = {word for turn in content.turns() for word in turn.split()}
        (self._test if test else self._train).update(words)

    def add_question(self, words: Sequence[str]) -> None:
        """Count the words of a test row's question."""
        self._questions.update(set(words))
        self._asked += 1

    def plain(self, word: str) -> bool:
        """True for words of many test questions, which tell how is asked and not what about."""
        return self._questions[word] >= max(PLAIN_ROWS, PLAIN_SHARE * self._asked)

    def known(self, word: str) -> bool:
        """True for words of the test rows and of several training rows."""
        return word in self._test or self._train[word] >= KNOWN_ROWS


@dataclass(frozen=True)
class Asked:
    """A test row: the words of its question, without what all test rows say, and its answer."""

    question: list[str]
    answer: str

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
        self.answer = "" if whole else " ".join(content.answer)
        self._vocabulary = vocabulary

    @cached_property
    def _set(self) -> set[str]:
        return set(self.words)

    @cached_property
    def garbled(self) -> bool:
        """True if many of the row's words, or several of its input's, are no words."""
        asked = [word for word in self._set if len(word) > 2 and word not in COMMON_WORDS]
        words = asked + [word for word in set(self.answer.split()) if len(word) > 3]
        odd, odd_asked = (sum(not self._vocabulary.known(word) for word in each) for each in (words, asked))
        return odd >= GARBLED * len(words) + 1 or odd_asked >= max(2, 0.4 * len(asked))

    def likeness(self, asked: Asked) -> Likeness | None:
        """How the row leaks the test row, if it does."""
        mates, missing = self._mates(asked)
        found = self._by_words(asked, mates, missing)
        if not found and len(missing) + 1 < len(asked.question):
            found = self._by_letters(asked)
        return found or self._by_answer(asked, missing)

    def _mates(self, asked: Asked) -> tuple[dict[str, str], list[str]]:
        """Words of the row that stand for words of the question, and the question's that nothing stands for."""
        mates, missing = {word: word for word in asked.question}, []
        absent = [word for word in asked.content if word not in self._set]
        if len(absent) > 1 + len(asked.content) // 2:  # too many to be other words for the same
            return mates, absent
        extras = [word for word in self._set if word not in mates and word not in COMMON_WORDS]
        for word in absent:
            mate = None if is_exact(word) else next((each for each in extras if self._stands_for(each, word)), None)
            if mate is None:
                missing.append(word)
            else:
                mates[mate] = word
        return mates, missing

    def _stands_for(self, word: str, asked: str) -> bool:
        if one_letter_off(word, asked):
            plural = f"{word}s" == asked or word == f"{asked}s"
            return plural or not self._vocabulary.known(word)
        return are_synonyms(word, asked)

    def _by_words(self, asked: Asked, mates: dict[str, str], missing: list[str]) -> Likeness | None:
        wanted = set(asked.content) - set(missing)
        spare = len(asked.content) // LONG
        if len(missing) > spare or not wanted or not all(self._vocabulary.plain(word) for word in missing):
            return None
        window = self._window(wanted, mates)
        if window is None:
            return None
        begin, end = self._extended(*window, asked)
        words = self.words[begin:end]
        extras = [word for word in words if word not in mates and word not in COMMON_WORDS]
        others = 0 if missing else spare
        if self.garbled:  # a letter by itself is what is left of a word
            words, extras = ([word for word in each if len(word) > 1 or word in mates] for each in (words, extras))
        if len(extras) > others or any(map(is_exact, extras)) or _numbers(words) != _numbers(asked.question):
            return None
        opening = self.words[max(0, begin - 3) : end]
        if len(asked.content) < LONG and (self._goes_on(begin, end) or _asks_otherwise(asked.question, opening)):
            return None
        outside = sum(word not in COMMON_WORDS for word in (*self.words[:begin], *self.words[end:]))
        kind = "similar question" if outside < 2 else "contains the question"
        return Likeness(kind, _alike(asked.question, words), words)

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

    def _goes_on(self, begin: int, end: int) -> bool:
        """True if words just beside make it another question: "causes of gout" goes on with "in women"."""
        stop = end
        while stop < len(self.words) and stop not in self._ends:
            stop += 1
        after = self.words[end:stop]
        goes_on = end not in self._ends and after and after[0] not in CONTINUING
        if goes_on and any(word not in COMMON_WORDS for word in after):
            return True
        while begin > 0 and begin not in self._ends and self.words[begin] not in OPENERS:
            begin -= 1
            if self.words[begin] not in COMMON_WORDS:
                return True
        return False

    def _by_letters(self, asked: Asked) -> Likeness | None:
        from rapidfuzz import fuzz
        from rapidfuzz.distance import Levenshtein

        question, text = " ".join(asked.question), " ".join(self.words)
        if sum(word not in self._set for word in asked.question) < MIN_GARBLED:
            return None
        if len(text) > len(question) + EDGE:
            aligned = fuzz.partial_ratio_alignment(question, text[: 20 * MAX_WORDS], score_cutoff=100 * MIN_ALIKE)
            if aligned is None:
                return None
            begin = text.rfind(" ", 0, aligned.dest_start + 1) + 1
            end = text.find(" ", aligned.dest_end)
            text = text[begin : end if end >= 0 else len(text)]
        score = Levenshtein.normalized_similarity(question, text, score_cutoff=MIN_ALIKE)
        words = text.split()
        if not score or not self._letters_fit(asked, question, text):
            return None
        extras = [word for word in words if len(word) >= ODD_WORD and word not in (*asked.question, *COMMON_WORDS)]
        extras = [word for word in extras if self._vocabulary.known(word)]
        kind = "similar question" if len(words) + 3 > len(self.words) else "contains the question"
        return None if len(extras) > len(asked.content) // LONG else Likeness(kind, float(score), words)

    def _letters_fit(self, asked: Asked, question: str, text: str) -> bool:
        """True if every word of the question that says something has a garbled form of it opposite."""
        from rapidfuzz.distance import Levenshtein

        if _numerals(text.split()) != _numerals(asked.question):
            return False
        edits = [0] * (len(question) + 1)
        for edit in Levenshtein.opcodes(question, text):
            if edit.tag != "equal":
                size = 1 if edit.src_end > edit.src_start else edit.dest_end - edit.dest_start
                for place in range(edit.src_start, max(edit.src_end, edit.src_start + 1)):
                    edits[min(place, len(question))] += size
        wrong, place = 0, 0
        for word in asked.question:
            off = sum(edits[place : place + len(word)])
            place += len(word) + 1
            most = 0 if is_exact(word) else max(1, round(0.45 * len(word)))
            wrong += word in asked.content and off > most
        return wrong <= len(asked.content) // LONG

    def _by_answer(self, asked: Asked, missing: list[str]) -> Likeness | None:
        """The same answer, to a question that is not about something else."""
        if min(asked.answer.count(" "), self.answer.count(" ")) < MIN_ANSWER:
            return None
        score = _alike(asked.answer, self.answer)
        if (
            score < MIN_SAME
            or _asks_otherwise(asked.question, self.words)
            or (missing and not self._other_words_only(asked, missing))
        ):
            return None
        return Likeness("similar row", score, self.words)

    def _other_words_only(self, asked: Asked, missing: list[str]) -> bool:
        """True if what is missing of the question is plain beside what is there; a name or a number is not."""
        if any(is_exact(word) for word in missing):
            return False
        there = [word for word in asked.content if word not in missing]
        if self.garbled:
            there += [word for word in missing if self._garbled_form(word)]
            missing = [word for word in missing if word not in there]
        if not there:  # another question altogether, unless it has the pattern of this one
            alike = sum(word in self._set for word in asked.question)
            return len(asked.answer) > 8 * MIN_ANSWER and 2 * alike < len(asked.question)
        return all(self._vocabulary.plain(word) and not self._in_name(asked, word) for word in missing)

    def _in_name(self, asked: Asked, word: str) -> bool:
        """True for "disease" in "Addison disease": it stands beside a word that is not plain."""
        place = asked.question.index(word)
        beside = asked.question[max(0, place - 1) : place + 2]
        return not all(each in COMMON_WORDS or self._vocabulary.plain(each) for each in beside)

    def _garbled_form(self, word: str) -> bool:
        from rapidfuzz import fuzz

        others = (each for each in self._set if not self._vocabulary.known(each))
        return any(fuzz.ratio(word, each) >= 55 for each in others)


def _asks_otherwise(question: Sequence[str], words: Sequence[str]) -> bool:
    """True for why in place of when."""
    one, other = (STRICT_OPENERS.intersection(each) for each in (question, words))
    return bool(one and other) and one != other


def _numerals(words: Sequence[str]) -> Counter[str]:
    return Counter(word for word in words if any(map(str.isdigit, word)))


def _numbers(words: Sequence[str]) -> Counter[str]:
    return Counter(word for word in words if is_exact(word) and word not in COMMON_WORDS)


def _alike(one: Sequence[str] | str, other: Sequence[str] | str) -> float:
    """The share of letters in common, in order or with the words sorted."""
    from rapidfuzz import fuzz

    texts = [text if isinstance(text, str) else " ".join(text) for text in (one, other)]
    return max(fuzz.ratio(*texts), fuzz.token_sort_ratio(*texts)) / 100
