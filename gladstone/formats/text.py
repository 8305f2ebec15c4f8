"""Plain text, for continued pre-training: one field, `text`, every token of it scored."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import required_text
from gladstone.rows import Row

FIELDS = ("text",)


def read(row: Row, source: str) -> Conversation:
    """A conversation of one turn, the assistant's: what nobody asked for is no answer, but text."""
    return Conversation((Message("assistant", required_text(row, "text", source)),), source)
