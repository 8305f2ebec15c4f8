"""MedQuAD's pairs, as its XML or a table of it holds them: `Question`, `Answer`."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import required_text
from gladstone.rows import Row

FIELDS = ("Question", "Answer")


def read(row: Row, source: str) -> Conversation:
    """One question, one answer, with the runs of blanks that MedQuAD's answers have in place of line ends kept."""
    question = Message("user", required_text(row, "Question", source))
    return Conversation((question, Message("assistant", required_text(row, "Answer", source))), source)
