"""Decides word by word whether two rows say the same: a different number, negation or name makes another row.

Only such rows are left out. Merely similar rows are kept, in the same set. Imports rapidfuzz.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from finetune.data.duplicates.content_keys import form_matters, message_text, read_content
from finetune.data.duplicates.word_classes import (
    FUNCTION_WORDS,
    REVERSING_WORDS,
    differs_by_one_letter,
    has_no_misprints,
)
from gladstone.chat.messages import Conversation

LONG_ANSWER = 20  # words; a common answer of this length is evidence that the inputs are the same too, a label is not
SWAP_WORDS, GAP_WORDS = 20, 20  # one swap of neighbours, and one missing word, are allowed in this many words


def say_the_same(one: Conversation, other: Conversation, known: Collection[str] = ()) -> bool:
    """True if two rows differ only in case, punctuation, spacing, swapped neighbours or misprints.

    `known` are words of the data: none of them counts as a misprint of another. Code, and texts about their own form,
    must be equal.
    """
    if not _same_shape(one, other):
        return False
    texts = [[message_text(message) for message in row.messages] for row in (one, other)]
    if texts[0] == texts[1]:
        return True
    if form_matters(one) or form_matters(other):
        return False
    rows = [[turn.split() for turn in read_content(row).turns()] for row in (one, other)]
    if rows[0] == rows[1]:
        return True
    long = min(len(row[-1]) for row in rows) >= LONG_ANSWER
    words = known if long else None
    *prompts, (answer, other_answer) = zip(*rows, strict=True)
    if not all(_same_words(mine, its, words, gaps=False) for mine, its in prompts):
        return False
    return _same_words(answer, other_answer, words, gaps=long)


def _same_shape(one: Conversation, other: Conversation) -> bool:
    if len(one.messages) != len(other.messages) or one.tools != other.tools:
        return False
    return all(
        (mine.role, mine.train, mine.tool_calls, mine.name, mine.reasoning is None)
        == (its.role, its.train, its.tool_calls, its.name, its.reasoning is None)
        for mine, its in zip(one.messages, other.messages, strict=True)
    )


def _same_words(one: Sequence[str], other: Sequence[str], known: Collection[str] | None, *, gaps: bool) -> bool:
    """Compare the words of a turn. `known` None: no misprints allowed. `gaps`: a few plain words may be missing."""
    if one == other:
        return True
    if list(filter(has_no_misprints, one)) != list(filter(has_no_misprints, other)):
        return False
    left, right = Counter(one), Counter(other)
    more, less = list((left - right).elements()), list((right - left).elements())
    if not (more or less):
        return _swapped(one, other)
    if known is not None:
        more, less = _without_misprints(more, less, known)
    more, less = ([word for word in words if word not in FUNCTION_WORDS] for words in (more, less))
    if {*more, *less} & REVERSING_WORDS or (more and less and _distinct(more, right) and _distinct(less, left)):
        return False
    if not gaps:
        return not _distinct(more, right) and not _distinct(less, left) and _swapped(one, other)
    return len(_distinct(more, right)) + len(_distinct(less, left)) <= 1 + max(len(one), len(other)) // GAP_WORDS


def _distinct(words: list[str], others: Counter[str]) -> list[str]:
    """Return the words that the other text lacks altogether; the rest are merely repeated."""
    return [word for word in words if not others[word]]


def _swapped(one: Sequence[str], other: Sequence[str]) -> bool:
    """True if swaps of neighbours, beside the difference in word counts, turn one text into the other."""
    from rapidfuzz.distance import OSA, Indel

    most = 1 + max(len(one), len(other)) // SWAP_WORDS
    differing = Indel.distance(sorted(one), sorted(other))
    return int(OSA.distance(one, other, score_cutoff=most + differing)) <= most + differing


def _without_misprints(more: list[str], less: list[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Remove pairs of differing words of which one is a misprint of the other; return what is left."""
    rest, left = [], list(less)
    for word in more:
        misprint = next((other for other in left if _is_misprint(word, other, known)), None)
        if misprint is None:
            rest.append(word)
        else:
            left.remove(misprint)
    return rest, left


def _is_misprint(one: str, other: str, known: Collection[str]) -> bool:
    from rapidfuzz.distance import Levenshtein

    if {one, other} & REVERSING_WORDS:
        return False
    if differs_by_one_letter(one, other):
        return one not in known or other not in known
    return (one in known) != (other in known) and Levenshtein.distance(one, other, score_cutoff=1) == 1
