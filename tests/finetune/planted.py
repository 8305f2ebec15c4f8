"""Near duplicates and leaks made on purpose: other case, punctuation, word order, or other words."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from gladstone.chat.messages import Conversation

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


def misread(text: str, draw: random.Random) -> str:
    """A tenth of the characters replaced, doubled or dropped, as scanning does."""
    letters = list(text)
    for place in draw.sample(range(len(letters)), max(1, round(len(letters) / 10))):
        letter = letters[place]
        letters[place] = draw.choice([draw.choice("abcdefghijklmnopqrstuvwxyz"), letter * 2, ""])
    return "".join(letters)


def other_spaces(text: str, draw: random.Random) -> str:
    return "".join(draw.choice(["  ", " \n", "\t "]) if letter == " " else letter for letter in text) + "  "


def other_order(text: str, draw: random.Random) -> str:
    """Sentences, and the halves of a text of one, change places."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    if len(sentences) > 1:
        draw.shuffle(sentences)
        return " ".join(sentences)
    words = text.split()
    return " ".join([*words[len(words) // 2 :], *words[: len(words) // 2]])


SYNONYMS = {
    "symptoms": "signs", "causes": "triggers", "treatment": "therapy", "treatments": "therapies", "doctor": "physician",
    "prevent": "avoid", "diagnosed": "identified", "diagnose": "detect", "outlook": "prognosis", "urgent": "immediate",
    "expect": "anticipate", "highest": "greatest", "drugs": "medicines", "patients": "people", "usually": "commonly",
    "include": "comprise", "severe": "serious", "may": "might", "often": "frequently", "help": "assist", "need": "require",
    "test": "examination", "increase": "raise", "reduce": "lower", "large": "big", "children": "kids", "show": "reveal",
    "seek": "look for", "medical": "clinical", "disease": "illness", "problems": "difficulties", "begin": "start",
}  # fmt: skip


def other_words(text: str, _draw: random.Random) -> str:
    return re.sub(r"\w+", lambda word: SYNONYMS.get(word[0].lower(), word[0]), text)


def wrapped(text: str, draw: random.Random) -> str:
    before = ["I am revising for an exam.", "A friend sent me this.", "Here is something I never understood.", "Hello!"]
    after = [
        "Please keep it short.",
        "Thank you very much in advance.",
        "Explain it as to a pupil.",
        "I need it today.",
    ]
    return f"{draw.choice(before)} {text} {draw.choice(after)}"


def unchanged(text: str, _draw: random.Random) -> str:
    return text


NOTHING_ELSE = "That depends, and the answer has to be looked up in a newer book than the one at hand."
# kind: how the question changes, and how the answer does; None gives another answer
LEAKS: dict[str, tuple[Edit, Edit | None]] = {
    "exact": (unchanged, unchanged),
    "case": (other_case, other_case),
    "punctuation": (other_punctuation, other_punctuation),
    "spaces": (other_spaces, other_spaces),
    "reordered": (other_order, other_order),
    "question only": (unchanged, None),
    "wrapped": (wrapped, None),
    "word swaps": (swapped_words, swapped_words),
    "misread": (misread, misread),
    "misread only q": (misread, None),
    "synonyms": (other_words, other_words),
}


DECOYS = ("other entity", "other number", "other aspect")


def entities(rows: Sequence[Conversation]) -> list[str]:
    """What each question is about: the longest word of its last line that few others have, in brackets or not."""
    lines = [re.sub(r"\(.*?\)", "", row.messages[-2].content.splitlines()[-1]) for row in rows]
    words = [re.findall(r"[^\W\d_]{4,}", line) for line in lines]
    asked = Counter(word.lower() for found in words for word in set(found))
    many = max(5, len(rows) // 50)
    rare = [[word for word in found if asked[word.lower()] < many] or found or ["nothing"] for found in words]
    return [max(found, key=len) for found in rare]


def plant_leaks(rows: Sequence[Conversation], kind: str, count: int, seed: int = 0) -> list[Conversation]:
    """Leaks of a kind, each from one of the rows, or decoys, which only share a pattern with one."""
    draw = random.Random(seed)
    about = dict(zip((row.source for row in rows), entities(rows), strict=True))
    made = []
    fitting = [row for row in rows if kind != "other number" or re.search(r"\d", row.messages[-2].content)]
    if kind == "synonyms":
        fitting = [row for row in rows if other_words(row.messages[-2].content, draw) != row.messages[-2].content]
    for row in draw.sample(fitting, min(count, len(fitting))):
        asked, answer = row.messages[-2], row.answer
        question, reply = asked.content, answer.content
        if kind == "other entity":
            longest = about[row.source]
            other = draw.choice([word for word in about.values() if word.lower() != longest.lower()])
            question, reply = (
                re.sub(re.escape(longest), other, text, flags=re.IGNORECASE) for text in (question, reply)
            )
        elif kind == "other number":
            question = re.sub(r"\d", lambda digit: str((int(digit[0]) + 3) % 10), question)
        elif kind == "other aspect":
            question = f"Which famous people have written about {about[row.source]}?"
            reply = NOTHING_ELSE
        else:
            edit, edit_answer = LEAKS[kind]
            question = edit(question, draw)
            reply = NOTHING_ELSE if edit_answer is None else edit_answer(reply, draw)
        messages = (*row.messages[:-2], replace(asked, content=question), replace(answer, content=reply))
        made.append(replace(row, messages=messages, source=f"{row.source} planted"))
    return made
