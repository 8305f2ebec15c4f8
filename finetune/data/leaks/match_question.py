"""Decides whether a training row asks what a test row asks, aligned word by word, or letter by letter if garbled.

A different name, number or negation makes another question, whatever pattern the two share.
"""

from collections import Counter

from finetune.data.duplicates.word_classes import COMMON_WORDS, REVERSING_WORDS, differs_by_one_letter, has_no_misprints
from finetune.data.leaks.garbled import align_garbled_part, match_garbled_question
from finetune.data.leaks.match_answer import match_answer
from finetune.data.leaks.question_form import OPENERS, asks_something_else, letter_similarity, negations, numbers
from finetune.data.leaks.rows import LONG_QUESTION, Match, QuestionPart, TestRow, TrainRow
from finetune.data.leaks.synonyms import is_general, synonyms

LONG = 10  # content words; in a longer question one in ten may differ
UNSURE_PARTS = 2  # one in this many parts of a long question may be too garbled to judge word by word
LOOSE, LOOSE_WORDS = 0.2, 4  # how much longer than the question the matching words may be
NAMED = 4  # content words
CONTINUING = frozenset((
    "and", "or", "please", "my", "thanks", "thank", "explain", "tell", "answer", "give", "describe", "because", "but",
    "so", "briefly", "now", "think", "then",
))  # fmt: skip
ASKING = frozenset(("what", "which", "who", "how", "when", "where", "why"))


def match_rows(row: TrainRow, test: TestRow) -> Match | None:
    """Return how a training row leaks a test row, None if it does not."""
    return _questions(row, test) or (match_answer(row, test) if row.answer else None)


def _questions(row: TrainRow, test: TestRow) -> Match | None:
    """Match the row with the question; every part of a long question has to match."""
    asked = test.question
    if len(asked.words) >= LONG_QUESTION and asked.joined in row.joined:
        kind = "similar question" if len(row.joined) < 2 * len(asked.joined) else "contains the question"
        return Match(kind, 1.0, asked.words)
    if len(test.parts) == 1:
        return _question(row, asked)
    score, matched, unsure = 0.0, [], len(test.parts) // UNSURE_PARTS
    for part in test.parts:
        if not part.last and part.text in row.text:
            match: Match | None = Match("", 1.0, part.words)
        else:
            match = _question(row, part)
        if match is None and unsure:
            unsure -= 1
            match = align_garbled_part(row, part)
        if match is None:
            return None
        score += match.score * len(part.words)
        matched.append(match.words)
    words = [word for match in (*matched[1:], matched[0]) for word in match]
    kind = "similar question" if len(words) + len(words) // LONG >= len(row.words) else "contains the question"
    return Match(kind, score / len(asked.words), words)


def _question(row: TrainRow, part: QuestionPart) -> Match | None:
    few_absent = len(part.content_set - row.set) <= 1 + len(part.content) // 2  # more are too many for synonyms
    match = _WordMatcher(row, part).find() if few_absent else None
    return match or (match_garbled_question(row, part) if row.untested_words else None)


class _WordMatcher:
    """Compares a part of a test row's question with a training row, word by word."""

    def __init__(self, row: TrainRow, part: QuestionPart) -> None:
        self._row, self._part = row, part
        self._spare = len(part.content) // LONG
        self._matches: dict[str, str] = {}  # word of the row → the word of the question that it matches

    def find(self) -> Match | None:
        """Return the shortest run of the row's words that asks the same."""
        missing = self._unmatched_words()
        if missing is None:
            return None
        self._matches.update((word, word) for word in self._part.words)
        window = self._window()
        if window is None or window[1] - window[0] > (1 + LOOSE) * len(self._part.words) + LOOSE_WORDS:
            return None
        begin, end = self._extended(*window)
        words = self._row.words[begin:end]
        extras = [word for word in words if word not in self._matches and not self._row.is_filler(word)]
        if extras and self._row.is_garbled:  # a single letter is a fragment of a word
            words, extras = (
                [word for word in group if len(word) > 1 or word in self._matches] for group in (words, extras)
            )
        if len(extras) > (0 if missing else self._spare) or not all(map(is_general, extras)):
            return None
        if numbers(words) != numbers(self._part.words) or not REVERSING_WORDS.isdisjoint((*missing, *extras)):
            return None
        if not self._asks_the_same(begin, end):
            return None
        outside = sum(word not in COMMON_WORDS for word in (*self._row.words[:begin], *self._row.words[end:]))
        kind = "similar question" if outside < 2 else "contains the question"
        return Match(kind, letter_similarity(self._part.words, words), words)

    def _unmatched_words(self) -> list[str] | None:
        """Return unmatched words if they only shape the question; None if there are others."""
        content, missing = self._part.content, list[str]()
        for word in content:
            if word in self._row.set:
                continue
            match = None if has_no_misprints(word) else self._find_match(word)
            if match is not None:  # one word may match two
                self._matches.setdefault(match, word)
            elif len(missing) == self._spare or not self._row.vocabulary.shapes_questions(word):
                return None
            else:
                missing.append(word)
        return missing

    def _find_match(self, word: str) -> str | None:
        """Return a word of the row that matches a word of the question as a misprint or synonym."""
        same = synonyms(word)
        if same and (shared := self._row.set & same):
            return min(shared)
        for other in (f"{word}s", word.removesuffix("s")):
            if other != word and other in self._row.set and differs_by_one_letter(other, word):
                return other
        taken = self._part.set
        for other in self._row.untested_words:
            near = abs(len(other) - len(word)) <= 1 and (other[0] == word[0] or other[-1] == word[-1])
            if near and other not in taken and differs_by_one_letter(other, word) and not self._row.is_known(other):
                return other
        return None

    def _asks_the_same(self, begin: int, end: int) -> bool:
        """True if the words around the run do not make it another question."""
        row, question = self._row, self._part.words
        passage_begin = max(passage_end for passage_end in (0, *row.ends) if passage_end <= begin)
        opening = row.words[max(begin - 3, passage_begin) : end]
        if question[-1] in OPENERS:
            opening += row.words[end : end + 1]
        if negations(opening) != negations(question) or asks_something_else(question, opening):
            return False
        if row.whole and question[0] in OPENERS and question[0] not in opening:
            return False  # a statement about it, not a question
        return not self._part.last or len(self._part.content) >= LONG or not self._continues(begin, end)

    def _extended(self, begin: int, end: int) -> tuple[int, int]:
        """Extend the run by adjacent words of the question."""
        words, ends, question = self._row.words, self._row.ends, self._part.set
        while begin > 0 and words[begin - 1] in question and begin not in ends:
            begin -= 1
        while end < len(words) and words[end] in question and end not in ends:
            end += 1
        return begin, end

    def _window(self) -> tuple[int, int] | None:
        """Return the shortest run of words that contains all matched words of the question."""
        content = self._part.content_set
        positions = [
            (index, match)
            for index, word in enumerate(self._row.words)
            if (match := self._matches.get(word)) is not None and match in content
        ]
        wanted = {word for _, word in positions}
        counts: Counter[str] = Counter()
        best: tuple[int, int] | None = None
        begin = 0
        for index, word in positions:
            counts[word] += 1
            while len(counts) == len(wanted):
                first, opening = positions[begin]
                if best is None or index + 1 - first < best[1] - best[0]:
                    best = first, index + 1
                counts[opening] -= 1
                if not counts[opening]:
                    del counts[opening]
                begin += 1
        return best

    def _continues(self, begin: int, end: int) -> bool:
        """True if adjacent words make it another question: "causes of gout" continues with "in women"."""
        words, ends, question = self._row.words, self._row.ends, self._part.words
        after = words[end : min((passage_end for passage_end in ends if passage_end >= end), default=end)]
        if len(after) == 1 and len(after[0]) == 1:  # hepatitis A
            return True
        if end not in ends and after and after[0] not in CONTINUING and not all(map(self._row.is_filler, after)):
            return True
        if question[0] not in OPENERS and len(self._part.content) >= NAMED:
            return False  # the question begins with its topic, so any words may precede it
        openers = ASKING if question[0] in ASKING else OPENERS
        while begin > 0 and begin not in ends and words[begin] not in openers:
            begin -= 1
            if not self._row.is_filler(words[begin]):
                return True
        return False
