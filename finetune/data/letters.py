"""A question found letter by letter in text that was typed or scanned badly. Names rapidfuzz."""

from collections.abc import Sequence
from dataclasses import dataclass

EDGE = 6  # letters that a garbled question may be longer by
MOST_LETTERS = 8_000  # of a text, from its start and from its end
BEFORE = 3  # words
INSERTED = 4  # letters: a word as long that stands opposite nothing is a word more


@dataclass(frozen=True)
class Opposite:
    """What stands opposite a question: a score from 0 to 1, the words, how many edits each word of the question needs.

    `before` are some words in front, `inserted` words opposite nothing, `pairs` the whole words opposite each word of
    the question, "" where there is none.
    """

    score: float
    before: list[str]
    words: list[str]
    edits: list[int]
    pairs: list[str]
    inserted: list[str]


def opposite(question: Sequence[str], words: Sequence[str], least: float) -> Opposite | None:
    """The part of a text that is most like a question, if its likeness is at least `least`."""
    from rapidfuzz import fuzz

    asked, text, before = " ".join(question), " ".join(words), ""
    if len(text) > len(asked) + EDGE:
        if len(text) > 2 * MOST_LETTERS:
            text = f"{text[:MOST_LETTERS]} {text[-MOST_LETTERS:]}"
        found = fuzz.partial_ratio_alignment(asked, text, score_cutoff=100 * least)
        if found is None:
            return None
        begin = text.rfind(" ", 0, max(0, found.dest_start - 1)) + 1
        end = text.find(" ", found.dest_end + 2)
        before, text = text[max(0, begin - 100) : begin], text[begin : end if end >= 0 else len(text)]
    return _aligned(question, text, before, least)


def _aligned(question: Sequence[str], text: str, before: str, least: float) -> Opposite | None:
    from rapidfuzz.distance import Levenshtein

    asked = " ".join(question)
    blocks = Levenshtein.editops(asked, text).as_matching_blocks()
    theirs, ours = [-1] * len(asked), [False] * len(text)
    for block in blocks:
        for offset in range(block.size):
            theirs[block.a + offset] = block.b + offset
            ours[block.b + offset] = True
    spans = _spans(text)
    inner = [place for place, (begin, end) in enumerate(spans) if 2 * sum(ours[begin:end]) >= end - begin]
    if not inner:
        return None
    spans = spans[inner[0] : inner[-1] + 1]  # a word at the edge that is not of the question
    edges = spans[0][0], spans[-1][1]
    front = f"{before} {text[: edges[0]]}".split()[-BEFORE:]
    score = Levenshtein.normalized_similarity(asked, text[slice(*edges)], score_cutoff=least)
    if not score:
        return None
    inserted = [
        text[begin:end] for begin, end in spans if end - begin >= INSERTED and 2 * sum(ours[begin:end]) < end - begin
    ]
    edits, pairs, place = [], [], 0
    for word in question:
        matched = [each for each in theirs[place : place + len(word)] if each >= 0]
        between = matched[-1] + 1 - matched[0] - len(matched) if matched else 0
        edits.append(max(len(word) - len(matched), between))
        middle = matched[len(matched) // 2] if matched else -1
        pairs.append(next((text[begin:end] for begin, end in spans if begin <= middle < end), ""))
        place += len(word) + 1
    return Opposite(float(score), front, text[slice(*edges)].split(), edits, pairs, inserted)


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends."""
    spans, begin = [], 0
    for word in text.split(" "):
        if word:
            spans.append((begin, begin + len(word)))
        begin += len(word) + 1
    return spans
