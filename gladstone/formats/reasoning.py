"""The layout of medical-o1-reasoning-SFT: `Question`, `Complex_CoT`, `Response`."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import required_text
from gladstone.rows import Row

FIELDS = ("Question", "Complex_CoT", "Response")


def read(row: Row, source: str) -> Conversation:
    """One question; the chain of thought becomes the answer's reasoning."""
    question = Message("user", required_text(row, "Question", source))
    answer = Message("assistant", required_text(row, "Response", source), required_text(row, "Complex_CoT", source))
    return Conversation((question, answer), source)
