"""Decides whether the words aligned with a question letter by letter are the garbled question. Imports rapidfuzz."""

from finetune.data.duplicates.words import COMMON_WORDS, NEGATIONS
from finetune.data.leaks.asking import asks_otherwise, digits, negations, prefixed_otherwise
from finetune.data.leaks.letters import Opposite, opposite
from finetune.data.leaks.rows import Likeness, Part, Row
from finetune.data.leaks.synonyms import are_synonyms

LONG = 10  # content words; a longer question tolerates an extra word
MIN_ALIKE, MIN_WHOLE = 0.7, 0.85  # similarity of a question, and of one inside an answer
SURE_ALIKE = 0.55  # if the answers are alike
WRONG_LETTERS, WRONG_AT_ALL = 0.45, 0.5  # share of a word's letters, among several garbled words
WRONG_BESIDE, WRONG_PLAIN = (
    0.4,
    0.6,
)  # share of a word's letters, beside one garbled word, and in a word that only shapes the question
FEW_WORSE, SURE_WORSE = 5, 3  # one garbled word in this many may be worse
SHORT_WORD = 5  # letters
LONG_WORD = 7  # letters; two may be wrong if nothing else is
MIN_REAL = 4  # letters; a shorter word may be a fragment of another
MORE_WORDS = 2
LOTS = 9


def misread_question(row: Row, part: Part) -> Likeness | None:
    """Match the question with a row that was typed or scanned badly."""
    found = opposite(part.words, row.words, MIN_WHOLE if row.whole else MIN_ALIKE)
    if found is None or not fits(row, part, found) or (part.last and _goes_on(row, found)):
        return None
    kind = "similar question" if len(found.words) + 3 > len(row.words) else "contains the question"
    return Likeness(kind, found.score, found.words)


def misread_beside_answer(row: Row, part: Part) -> bool:
    """True if the row may contain the question, more garbled, given that the answers are alike."""
    found = opposite(part.words, row.words, SURE_ALIKE)
    return found is not None and fits(row, part, found, sure=True)


def fits(row: Row, part: Part, found: Opposite, *, sure: bool = False) -> bool:
    """True if every content word of the question is aligned with a misprinted form of itself."""
    opening = [*found.before, *found.words]
    if found.numbered or asks_otherwise(part.words, opening):
        return False
    if set(negations(opening) - negations(part.words)) - {"t"}:  # a single letter is a fragment of a word
        return False
    if len(found.inserted) > len(part.content) // LONG or any(map(row.real, found.inserted)):
        return False
    opposites = [*zip(part.words, found.edits, found.pairs, strict=True)]
    misread = sum(_is_misprint(row, *each) for each in opposites)
    if not misread:  # intact words have been compared before
        return False
    content, worse = set(part.content), 0
    for word, edits, other in opposites:
        if other == word or (word not in content and word not in NEGATIONS):
            continue
        beside = LOTS if row.misread else misread - _is_misprint(row, word, edits, other)
        limit, at_most = _most_edits(row, word, beside)
        if edits > at_most or _other_word(row, word, edits, other, beside):
            return False
        worse += edits > limit
    return worse <= len(content) // (SURE_WORSE if sure else FEW_WORSE)


def _is_misprint(row: Row, word: str, edits: int, other: str) -> bool:
    """True for a word with wrong letters, or with a missing or extra space."""
    if other in {"", word} or other in COMMON_WORDS:
        return False
    return edits <= WRONG_PLAIN * len(word) and not _other_word(row, word, edits, other, LOTS)


def _goes_on(row: Row, found: Opposite) -> bool:
    """True if the words that follow make it another question."""
    begin = found.place + len(found.words)
    after = row.words[begin : min((place for place in row.ends if place >= begin), default=begin)]
    return sum(len(word) >= MIN_REAL and not row.empty(word) for word in after) >= MORE_WORDS


def _other_word(row: Row, word: str, edits: int, other: str, beside: int) -> bool:
    """True if the aligned word is a different word, not the same one with wrong letters."""
    if prefixed_otherwise(word, other):
        return True
    if "" != digits(word) != digits(other) and (edits or word.isdigit()) and (word.isdigit() or digits(other)):
        return True
    if len(word) == 1:
        return len(other) == 1
    if not edits:  # "thyroid" in "thyroiditis", but not in "ofthyroid" or "thy roid"
        return other.isalpha() and len(other) > len(word) + 1 and other.startswith(word) and row.real(other)
    if len(other) < MIN_REAL or not row.real(other) or are_synonyms(word, other) or (edits == 1 and beside > 1):
        return False
    return edits > max(2, WRONG_LETTERS * len(word)) or not row.vocabulary.outnumbered(other, word)


def _most_edits(row: Row, word: str, beside: int) -> tuple[int, int]:
    """Return how many letters of a word may be wrong, normally and at worst; `beside`: other garbled words."""
    length = len(word)
    if word.isdigit():
        return 0, 0
    if length == 1:
        return (1, 1) if beside > 1 else (0, 0)
    if row.vocabulary.plain(word):
        most = max(2 if length >= MIN_REAL else 1, int((WRONG_PLAIN if beside else WRONG_LETTERS) * length))
        return most, most
    few = 2 if length >= LONG_WORD else 1 if length >= MIN_REAL else 0
    if length <= SHORT_WORD or beside <= 1:
        more = (1 if length < MIN_REAL else 2) if length <= SHORT_WORD else max(few, int(WRONG_BESIDE * length))
        most = more if beside else few
        return most, most
    return int(WRONG_LETTERS * length), int(WRONG_AT_ALL * length)
