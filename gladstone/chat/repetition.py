"""Detect text that repeats itself, as the answers of a degenerate model do."""

import re

LEAST_CHARACTERS = 24  # of all repetitions together
LONGEST_PART = 200  # characters of the repeated part
TIMES = 3
LEAST_WORDS, WORDS_IN_A_ROW = 24, 4
MOST_SEEN_BEFORE = 0.5  # share of the n-grams of WORDS_IN_A_ROW words that are repeated


def repeats_itself(text: str) -> bool:
    """Whether the text ends in the same part three or more times, or at least half of its n-grams are repeats.

    Numbers compare as equal, and so do upper and lower case: a list that only counts up is a repetition too.

    >>> repeats_itself("Rest. " + "Drink water and rest. " * 4)
    True
    >>> repeats_itself("Problem: Cough\\nSince: Monday\\nUrgency: routine\\nAdvice: Drink and rest.")
    False
    """
    folded = " ".join(text.split()).casefold()
    counting = re.sub(r"\b\d{1,3}\b", "0", folded)
    return _ends_in_a_loop(folded) or _ends_in_a_loop(counting) or _says_it_again(counting.split())


def _ends_in_a_loop(text: str) -> bool:
    """A last repetition that is cut off counts with the characters it has."""
    backwards = text[: -LONGEST_PART * (TIMES + 1) - 1 : -1]
    for length in range(1, min(LONGEST_PART, len(backwards) // TIMES) + 1):
        equal = next(
            (index for index in range(len(backwards) - length) if backwards[index] != backwards[index + length]),
            len(backwards) - length,
        )
        if equal >= (TIMES - 1) * length and equal + length >= LEAST_CHARACTERS:
            return True
    return False


def _says_it_again(words: list[str]) -> bool:
    if len(words) < LEAST_WORDS:
        return False
    runs = [tuple(words[start : start + WORDS_IN_A_ROW]) for start in range(len(words) - WORDS_IN_A_ROW + 1)]
    return 1 - len({*runs}) / len(runs) >= MOST_SEEN_BEFORE
