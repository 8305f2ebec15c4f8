"""MedQuAD's pairs, as its XML or a table of it holds them: `Question`, `Answer`."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import Fields

FIELDS = ("Question", "Answer")


def read(row: Fields) -> Conversation:
    """One question, one answer, with the runs of blanks that MedQuAD's answers have in place of line ends kept."""
    question = Message("user", row.required_text("Question"))
    return Conversation((question, Message("assistant", row.required_text("Answer"))), row.source)
