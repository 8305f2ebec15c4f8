"""The layout of medical-o1-reasoning-SFT: `Question`, `Complex_CoT`, `Response`."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields

FIELDS = ("Question", "Complex_CoT", "Response")


def read(row: Fields) -> Conversation:
    """One question; the chain of thought becomes the answer's reasoning."""
    question = Message("user", row.required_text("Question"))
    answer = Message("assistant", row.required_text("Response"), row.required_text("Complex_CoT"))
    return Conversation((question, answer), row.source)
