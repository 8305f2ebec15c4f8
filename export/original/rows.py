"""The rows for proof and held-out loss, and how page, card and terminal describe them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from gladstone.chat.messages import Conversation
from gladstone.formats import checked_conversations, find_layout, read_conversations

TRAINED_ROWS = 400  # rows used if none were held out
Kind = Literal["held out", "given", "trained on", "none"]


@dataclass(frozen=True)
class Words:
    """Descriptions of one kind of rows."""

    rows: str
    answers: str
    page: str = ""  # on the page of the proof
    note: str = ""  # note for the user
    card: str = ""  # on the model card, about the measured loss or its absence
    absent: str = ""  # why no loss was measured


WORDS: Mapping[Kind, Words] = {
    "held out": Words(
        rows="held-out rows",
        answers="answers",
        card="It was measured on rows like those it was trained on; how it answers other questions was not measured "
        "here.",
    ),
    "given": Words(
        rows="given rows",
        answers="given answers",
        page="given with --data; whether the training saw them is not known",
        card="It was measured on rows that were given for this export, and may have been trained on them; how it "
        "answers other questions was not measured here.",
    ),
    "trained on": Words(
        rows="training rows",
        answers="answers that were trained on",
        page="those of the training: the run held none out",
        note="the run held out no rows: the files are proven on rows that were trained on, and no held-out loss is "
        "measured.",
        card="How it answers questions that it was not trained on was not measured: no row was held out.",
        absent="the run has no test and no validation rows; the training loss says nothing of questions that the model "
        "has not seen.",
    ),
    "none": Words(
        rows="questions of Gladstone's own",
        answers="answers to questions of Gladstone's own",
        page="questions of Gladstone's own, since none of the training is at hand (--data FILE gives some)",
        note="no row of the training is at hand: the files are proven on questions of Gladstone's own, and how well "
        "the model answers yours is not measured. --data FILE proves and measures on rows of yours.",
        card="How well it answers was not measured: no row of its training is at hand.",
        absent="no row of its training is at hand.",
    ),
}


@dataclass(frozen=True)
class Rows:
    """Files of rows with their layouts, and their relation to the model."""

    kind: Kind = "held out"
    files: tuple[tuple[Path, str], ...] = ()

    @property
    def words(self) -> Words:
        """Descriptions of these rows."""
        return WORDS[self.kind]

    @property
    def measures(self) -> bool:
        """True if the loss on them measures unseen questions."""
        return self.kind in ("held out", "given")

    def read(self) -> list[Conversation]:
        """Read the rows; at most TRAINED_ROWS of training rows. Raises DataError."""
        if self.kind == "trained on":
            (path, layout), *_ = self.files
            return list(islice(checked_conversations(path, find_layout(path, layout)), TRAINED_ROWS))
        return [row for path, layout in self.files for row in read_conversations(path, layout)]
