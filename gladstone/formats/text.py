"""Plain text, for continued pre-training: one field, `text`, every token of it scored."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import Fields

FIELDS = ("text",)


def read(row: Fields) -> Conversation:
    """A conversation of one turn, the assistant's: what nobody asked for is no answer, but text."""
    return Conversation((Message("assistant", row.required_text("text")),), row.source)
