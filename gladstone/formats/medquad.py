"""MedQuAD's pairs, from its XML or from a table: `Question`, `Answer`."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields

FIELDS = ("Question", "Answer")


def read(row: Fields) -> Conversation:
    """One question and one answer; the runs of spaces that MedQuAD's answers have in place of line ends are kept."""
    question = Message("user", row.required_text("Question"))
    return Conversation((question, Message("assistant", row.required_text("Answer"))), row.source)
