"""Near duplicates made on purpose: the same row in other case, punctuation, order of words, or with other words."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from gladstone.chat import Conversation

Edit = Callable[[str, random.Random], str]


def other_case(text: str, draw: random.Random) -> str:
    return draw.choice([str.upper, str.title, str.lower])(text)


def other_punctuation(text: str, draw: random.Random) -> str:
    bare = re.sub(r"[.,;:!?()]", "", text)
    return " ".join(word + draw.choice(["", "", "", ",", ";", " -"]) for word in bare.split()) + draw.choice("!?.")


def swapped_words(text: str, draw: random.Random) -> str:
    """One pair of neighbours in twenty words changes places, at least one."""
    words = text.split()
    for _ in range(max(1, len(words) // 20)):
        place = draw.randrange(max(1, len(words) - 1))
        words[place : place + 2] = reversed(words[place : place + 2])
    return " ".join(words)


def edited(share: float) -> Edit:
    """That share of the words is dropped, doubled, or given another letter."""

    def edit(text: str, draw: random.Random) -> str:
        words = text.split()
        for place in draw.sample(range(len(words)), max(1, round(share * len(words)))):
            word = words[place]
            words[place] = draw.choice(["", f"{word} {word}", word[:-1] + draw.choice("aeiou")])
        return " ".join(filter(None, words))

    return edit


EDITS: dict[str, Edit] = {
    "case": other_case,
    "punctuation": other_punctuation,
    "word swaps": swapped_words,
    "5 % of words": edited(0.05),
    "10 % of words": edited(0.1),
}


def plant(rows: Sequence[Conversation], edit: Edit, seed: int = 0) -> list[Conversation]:
    """A near duplicate of each row."""
    draw = random.Random(seed)
    return [
        Conversation(
            tuple(replace(message, content=edit(message.content, draw)) for message in row.messages),
            f"{row.source} planted",
        )
        for row in rows
    ]
