"""Whether two rows say the same, word by word: a number, a negation or a name makes another row. Names rapidfuzz.

A row is left out only if this says so. What is merely similar is kept, and goes to the same set.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from finetune.data.duplicates.content import form_matters, message_text, read_content
from finetune.data.duplicates.words import EMPTY_WORDS, TURNING_WORDS, is_exact, one_letter_off
from gladstone.chat.messages import Conversation

LONG_ANSWER = 20  # words: as many in common are evidence that the input is the same too, a label is none
SWAPS, SLIPS = 20, 20  # one swap of neighbours, one word missing in as many words


def says_the_same(one: Conversation, other: Conversation, known: Collection[str] = ()) -> bool:
    """True if two rows differ in case, punctuation, spacing, swapped neighbours or misprints only.

    `known` are words of the data: one of them is no misprint of another. Code, and texts that are about their own form,
    have to be equal.
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
    if not all(_same_words(mine, its, words, slips=False) for mine, its in prompts):
        return False
    return _same_words(answer, other_answer, words, slips=long)


def _same_shape(one: Conversation, other: Conversation) -> bool:
    if len(one.messages) != len(other.messages) or one.tools != other.tools:
        return False
    return all(
        (mine.role, mine.train, mine.tool_calls, mine.name, mine.reasoning is None)
        == (its.role, its.train, its.tool_calls, its.name, its.reasoning is None)
        for mine, its in zip(one.messages, other.messages, strict=True)
    )


def _same_words(one: Sequence[str], other: Sequence[str], known: Collection[str] | None, *, slips: bool) -> bool:
    """`known` None: no misprints. `slips`: a few plain words may be missing on one side."""
    if one == other:
        return True
    if list(filter(is_exact, one)) != list(filter(is_exact, other)):
        return False
    left, right = Counter(one), Counter(other)
    more, less = list((left - right).elements()), list((right - left).elements())
    if not (more or less):
        return _swapped(one, other)
    if known is not None:
        more, less = _without_misprints(more, less, known)
    more, less = ([word for word in words if word not in EMPTY_WORDS] for words in (more, less))
    if {*more, *less} & TURNING_WORDS or (more and less and _distinct(more, right) and _distinct(less, left)):
        return False
    if not slips:
        return not _distinct(more, right) and not _distinct(less, left) and _swapped(one, other)
    return len(_distinct(more, right)) + len(_distinct(less, left)) <= 1 + max(len(one), len(other)) // SLIPS


def _distinct(words: list[str], others: Counter[str]) -> list[str]:
    """The words that the other text does not have at all; the rest are doubled."""
    return [word for word in words if not others[word]]


def _swapped(one: Sequence[str], other: Sequence[str]) -> bool:
    """True if swaps of neighbours, and what differs besides in number of words, make one text the other."""
    from rapidfuzz.distance import OSA, Indel

    most = 1 + max(len(one), len(other)) // SWAPS
    differing = Indel.distance(sorted(one), sorted(other))
    return int(OSA.distance(one, other, score_cutoff=most + differing)) <= most + differing


def _without_misprints(more: list[str], less: list[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """What is left of the words that differ after pairs of which one is no word of the data."""
    rest, left = [], list(less)
    for word in more:
        mate = next((each for each in left if _is_misprint(word, each, known)), None)
        if mate is None:
            rest.append(word)
        else:
            left.remove(mate)
    return rest, left


def _is_misprint(one: str, other: str, known: Collection[str]) -> bool:
    from rapidfuzz.distance import Levenshtein

    if {one, other} & TURNING_WORDS:
        return False
    if one_letter_off(one, other):
        return one not in known or other not in known
    return (one in known) != (other in known) and Levenshtein.distance(one, other, score_cutoff=1) == 1
