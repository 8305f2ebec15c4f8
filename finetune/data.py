"""Rows to three sets that share no question: training, validation, test."""

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.recipe import DataSection
from gladstone.artifacts import write_rows
from gladstone.chat import Conversation
from gladstone.errors import DataError
from gladstone.formats import iter_conversations, messages
from gladstone.rows import Problems


@dataclass(frozen=True)
class Split:
    """The three sets, and how many rows were left out: exact copies, and bad ones where the recipe allows it.

    `formats` has the layout that each source was read as.
    """

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    copies: int = 0
    bad_rows: int = 0
    formats: tuple[str, ...] = ()

    def sets(self) -> dict[str, tuple[Conversation, ...]]:
        """The sets by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def load_split(section: DataSection) -> Split:
    """Read all sources, drop exact copies and divide. Raises DataError for bad files or too few rows."""
    problems = Problems()
    conversations: list[Conversation] = []
    layouts = [source.layout() for source in section.sources]
    for source, layout in zip(section.sources, layouts, strict=True):
        conversations += iter_conversations(source.file(), layout, problems)
    if not section.skip_bad:
        problems.check("bad rows, which --skip-bad would leave out")
    unique = drop_copies(conversations)
    rows = unique
    if section.max_rows is not None and section.max_rows < len(unique):
        rows = random.Random(section.seed).sample(unique, section.max_rows)  # noqa: S311 - a draw, not a secret
    split = replace(
        divide(rows, section),
        copies=len(conversations) - len(unique),
        bad_rows=problems.count,
        formats=tuple(layout.name for layout in layouts),
    )
    if not (split.train and split.validation and split.test):
        raise DataError(f"{len(rows)} rows are too few to divide into training, validation and test sets.")
    return split


def drop_copies(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The conversations whose turns did not occur before."""
    first = {conversation.messages: conversation for conversation in reversed(conversations)}
    return [conversation for conversation in conversations if first[conversation.messages] is conversation]


def divide(conversations: Sequence[Conversation], section: DataSection) -> Split:
    """Divide by seed; rows that ask the same question always fall into the same set."""
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(question_key(conversation), []).append(conversation)
    shuffled = list(groups.values())
    random.Random(section.seed).shuffle(shuffled)  # noqa: S311 - a draw, not a secret
    sizes = {"test": section.test_share, "validation": section.validation_share}
    sets: dict[str, list[Conversation]] = {"test": [], "validation": [], "train": []}
    for group in shuffled:
        hungry = next((name for name, share in sizes.items() if len(sets[name]) < share * len(conversations)), "train")
        sets[hungry] += group
    return Split(tuple(sets["train"]), tuple(sets["validation"]), tuple(sets["test"]))


def question_key(conversation: Conversation) -> str:
    """What makes two rows the same question: the user's words without case, accents' encoding or punctuation."""
    text = " ".join(message.content for message in conversation.messages if message.role == "user")
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(char if char.isalnum() else " " for char in folded).split())


def write_split(split: Split, folder: Path) -> None:
    """Write the sets as JSON Lines in the `messages` format, which loses nothing."""
    for name, conversations in split.sets().items():
        write_rows(folder / f"{name}.jsonl", map(messages.write, conversations))
