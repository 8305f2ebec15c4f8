"""Aligns a question letter by letter with text that was typed or scanned badly. Imports rapidfuzz.

Spaces are ignored: scanners drop them and break words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

EDGE = 8  # letters added to the aligned range on either side
MOST_LETTERS = 8_000  # at the start and at the end of a text
BEFORE = 3  # words
INSERTED = 4  # letters; an unaligned word of this length is an extra word


@dataclass(frozen=True)
class Alignment:
    """The words aligned with a question: a score from 0 to 1, the words, and the edits that each question word needs.

    `position` is that of the first word in the text, `before` are some words before it, `inserted` are unaligned
    words, `pairs` the whole words aligned with each word of the question, "" if there is none. `numbered` is true if a
    number of the text is aligned with no letters.
    """

    score: float
    position: int
    before: list[str]
    words: list[str]
    edits: list[int]
    pairs: list[str]
    inserted: list[str]
    numbered: bool


def align_question(question: Sequence[str], words: Sequence[str], least: float) -> Alignment | None:
    """Return the part of a text that is most similar to a question, if its similarity is at least `least`."""
    from rapidfuzz import fuzz

    asked, text = "".join(question), "".join(words)
    if len(text) > 2 * MOST_LETTERS:
        words = _ends(words)
        text = "".join(words)
    begin, end = 0, len(text)
    if len(text) > len(asked) + EDGE:
        range_found = fuzz.partial_ratio_alignment(asked, text, score_cutoff=100 * least)
        if range_found is None:
            return None
        begin, end = max(0, range_found.dest_start - EDGE), range_found.dest_end + EDGE
    spans = [*pairwise(accumulate(map(len, words), initial=0))]
    inside = [index for index, (first, last) in enumerate(spans) if first < end and last > begin]
    if not inside:
        return None
    return _aligned(question, words[: inside[0]], words[inside[0] : inside[-1] + 1], least)


def _ends(words: Sequence[str]) -> list[str]:
    """Return the first and the last words of a long text."""
    sizes = [*accumulate(map(len, words))]
    first = sum(size <= MOST_LETTERS for size in sizes)
    last = sum(size > sizes[-1] - MOST_LETTERS for size in sizes)
    return [*words[:first], *words[max(first, len(words) - last) :]]


def _aligned(question: Sequence[str], front: Sequence[str], words: Sequence[str], least: float) -> Alignment | None:
    """Align the question's letters with those of some words, without unrelated words at either end."""
    from rapidfuzz.distance import Levenshtein

    asked, text = "".join(question), "".join(words)
    theirs, ours = _matched(asked, text)
    spans = [*pairwise(accumulate(map(len, words), initial=0))]
    inner = [index for index, (begin, end) in enumerate(spans) if 2 * sum(ours[begin:end]) >= end - begin]
    if not inner:
        return None
    first, last = inner[0], inner[-1] + 1
    score = Levenshtein.normalized_similarity(asked, "".join(words[first:last]), score_cutoff=least)
    if not score:
        return None
    kept = set(inner)
    missed = [index for index in range(first, last) if index not in kept]
    edits, pairs = _by_word(question, theirs, [*zip(spans, words, strict=True)][first:last])
    return Alignment(
        float(score),
        len(front) + first,
        [*front, *words[:first]][-BEFORE:],
        list(words[first:last]),
        edits,
        pairs,
        [words[index] for index in missed if len(words[index]) >= INSERTED],
        any(words[index].isdigit() and _is_number_more(asked, theirs, spans[index]) for index in missed),
    )


def _matched(asked: str, text: str) -> tuple[list[int], list[int]]:
    """Return the text position of each letter of a question, -1 if unmatched, and 1 for each matched text letter."""
    from rapidfuzz.distance import Levenshtein

    theirs, ours = [-1] * len(asked), [0] * len(text)
    for block in Levenshtein.editops(asked, text).as_matching_blocks():
        theirs[block.a : block.a + block.size] = range(block.b, block.b + block.size)
        ours[block.b : block.b + block.size] = [1] * block.size
    return theirs, ours


def _by_word(
    question: Sequence[str], theirs: list[int], spans: list[tuple[tuple[int, int], str]]
) -> tuple[list[int], list[str]]:
    edits, pairs, begin_letter = [], [], 0
    for word in question:
        matched = [position for position in theirs[begin_letter : begin_letter + len(word)] if position >= 0]
        between = matched[-1] + 1 - matched[0] - len(matched) if matched else 0
        edits.append(max(len(word) - len(matched), between))
        middle = matched[len(matched) // 2] if matched else -1
        pairs.append(next((other for (begin, end), other in spans if begin <= middle < end), ""))
        begin_letter += len(word)
    return edits, pairs


def _is_number_more(asked: str, theirs: list[int], span: tuple[int, int]) -> bool:
    """True for digits aligned with nothing or with other digits; digits aligned with letters are scanning errors."""
    before = max((letter for letter, position in enumerate(theirs) if 0 <= position < span[0]), default=-1)
    after = next((letter for letter, position in enumerate(theirs) if position >= span[1]), len(asked))
    between = asked[before + 1 : after]
    return len(between) + 1 < span[1] - span[0] or not between or any(map(str.isdigit, between))
