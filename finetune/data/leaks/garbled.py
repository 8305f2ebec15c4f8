"""Decides whether the words aligned with a question letter by letter are the garbled question. Imports rapidfuzz."""

from collections import Counter

from finetune.data.duplicates.word_classes import COMMON_WORDS, NEGATIONS
from finetune.data.leaks.align_letters import Alignment, align_question
from finetune.data.leaks.question_form import asks_something_else, digits, has_opposite_prefix, negations
from finetune.data.leaks.rows import Match, QuestionPart, TrainRow
from finetune.data.leaks.synonyms import are_synonyms

LONG = 10  # content words; a longer question tolerates an extra word
MIN_SIMILARITY, MIN_SIMILARITY_INSIDE = 0.7, 0.85  # similarity of a question, and of one inside an answer
MIN_SIMILARITY_OF_PART = 0.65  # similarity of a part, if the others match
MIN_SIMILARITY_BESIDE_ANSWER = 0.55  # if the answers are alike
WRONG_LETTERS, WRONG_AT_ALL = 0.45, 0.5  # share of a word's letters, among several garbled words
# share of a word's letters, beside one garbled word, and in a word that only shapes the question
WRONG_BESIDE, WRONG_PLAIN = 0.4, 0.6
FEW_WORSE, SURE_WORSE = 5, 3  # one garbled word in this many may be worse
SHORT_WORD = 5  # letters
LONG_WORD = 7  # letters; two may be wrong if nothing else is
MIN_REAL = 4  # letters; a shorter word may be a fragment of another
MIN_AFFIX = 3  # letters that make a word another one, unless other words are garbled too
MANY_WORDS = 12  # content words; one in this many may be unrecognisable where a long text is garbled throughout
MORE_WORDS = 2  # that make it another question
MANY_GARBLED = 9  # other words, where the whole row is garbled


def match_garbled_question(row: TrainRow, part: QuestionPart) -> Match | None:
    """Match the question with a row that was typed or scanned badly."""
    alignment = align_question(part.words, row.words, MIN_SIMILARITY_INSIDE if row.whole else MIN_SIMILARITY)
    if alignment is None or not fits(row, part, alignment) or (part.last and _continues(row, alignment)):
        return None
    kind = "similar question" if len(alignment.words) + 3 > len(row.words) else "contains the question"
    return Match(kind, alignment.score, alignment.words)


def align_garbled_part(row: TrainRow, part: QuestionPart) -> Match | None:
    """Match a part of a long question by its letters alone, if the whole row was typed or scanned badly."""
    alignment = align_question(part.words, row.words, MIN_SIMILARITY_OF_PART) if row.is_garbled else None
    if alignment is None or asks_something_else(part.words, [*alignment.before, *alignment.words]):
        return None
    return Match("similar question", alignment.score, alignment.words)


def may_contain_garbled_question(row: TrainRow, part: QuestionPart) -> bool:
    """True if the row may contain the question, more garbled, given that the answers are alike."""
    alignment = align_question(part.words, row.words, MIN_SIMILARITY_BESIDE_ANSWER)
    return alignment is not None and fits(row, part, alignment, sure=True)


def fits(row: TrainRow, part: QuestionPart, alignment: Alignment, *, sure: bool = False) -> bool:
    """True if every content word of the question is aligned with a misprinted form of itself."""
    opening = [*alignment.before, *alignment.words]
    tolerated = len(part.content) // MANY_WORDS if row.is_garbled else 0
    if (alignment.numbered and not tolerated) or asks_something_else(part.words, opening):
        return False
    if set(negations(opening) - negations(part.words)) - {"t"}:  # a single letter is a fragment of a word
        return False
    if len(alignment.inserted) > len(part.content) // LONG or any(map(row.is_known, alignment.inserted)):
        return False
    word_pairs = [*zip(part.words, alignment.edits, alignment.pairs, strict=True)]
    garbled_words = sum(_is_misprint(row, *pair) for pair in word_pairs)
    if not garbled_words:  # intact words have been compared before
        return False
    content, worse, wrong = part.content_set, 0, Counter[tuple[str, str]]()
    for word, edits, other in word_pairs:
        if other == word or (word not in content and word not in NEGATIONS):
            continue
        beside = garbled_words - _is_misprint(row, word, edits, other)
        beside = MANY_GARBLED if beside and row.is_garbled else beside
        limit, at_most = _most_edits(row, word, beside)
        if edits > at_most or _is_other_word(row, word, edits, other, beside):
            wrong[word, other] += 1
        worse += edits > limit
    # a name that is another one throughout makes another text, however long
    if wrong.total() > tolerated or any(times > 1 and row.is_known(other) for (_, other), times in wrong.items()):
        return False
    return worse <= len(content) // (SURE_WORSE if sure else FEW_WORSE)


def _is_misprint(row: TrainRow, word: str, edits: int, other: str) -> bool:
    """True for a word with wrong letters, or with a missing or extra space."""
    if other in {"", word} or other in COMMON_WORDS:
        return False
    return edits <= WRONG_PLAIN * len(word) and not _is_other_word(row, word, edits, other, MANY_GARBLED)


def _continues(row: TrainRow, alignment: Alignment) -> bool:
    """True if the words that follow make it another question."""
    begin = alignment.position + len(alignment.words)
    after = row.words[begin : min((end for end in row.ends if end >= begin), default=begin)]
    return sum(len(word) >= MIN_REAL and not row.is_filler(word) for word in after) >= MORE_WORDS


def _is_other_word(row: TrainRow, word: str, edits: int, other: str, beside: int) -> bool:
    """True if the aligned word is a different word, not the same one with wrong letters."""
    if has_opposite_prefix(word, other):
        return True
    if "" != digits(word) != digits(other) and (edits or word.isdigit()) and (word.isdigit() or digits(other)):
        return True
    if len(word) == 1:
        return len(other) == 1
    if not edits:
        return _is_longer_word(row, word, other, beside)
    if len(other) < MIN_REAL or not row.is_known(other) or are_synonyms(word, other) or (edits == 1 and beside > 1):
        return False
    return edits > max(2, WRONG_LETTERS * len(word)) or not row.vocabulary.may_be_misprint_of(other, word)


def _is_longer_word(row: TrainRow, word: str, other: str, beside: int) -> bool:
    """True for "thyroiditis" and "athyroid" that contain "thyroid", but not for "ofthyroid" or "thyroidgland"."""
    more = other.removeprefix(word) if other.startswith(word) else other.removesuffix(word)
    if not other.isalpha() or more == other or len(more) < 2:
        return False
    if row.is_known(other):
        return other.startswith(word) or len(more) >= MIN_AFFIX
    return len(more) >= MIN_AFFIX and not beside and not row.is_known(more)


def _most_edits(row: TrainRow, word: str, beside: int) -> tuple[int, int]:
    """Return how many letters of a word may be wrong, normally and at worst; `beside`: other garbled words."""
    length = len(word)
    if word.isdigit():
        return 0, 0
    if length == 1:
        return (1, 1) if beside > 1 else (0, 0)
    if row.vocabulary.shapes_questions(word):
        most = max(2 if length >= MIN_REAL else 1, int((WRONG_PLAIN if beside else WRONG_LETTERS) * length))
        return most, most
    few = 2 if length >= LONG_WORD else 1 if length >= MIN_REAL else 0
    if length <= SHORT_WORD or beside <= 1:
        more = (1 if length < MIN_REAL else 2) if length <= SHORT_WORD else max(few, int(WRONG_BESIDE * length))
        most = more if beside else few
        return most, most
    return int(WRONG_LETTERS * length), int(WRONG_AT_ALL * length)
