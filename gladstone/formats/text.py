"""Plain text for continued pre-training: one field, `text`; every token is scored."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields

FIELDS = ("text",)


def read(row: Fields) -> Conversation:
    """Return a conversation of one assistant turn: text without a question is plain text."""
    return Conversation((Message("assistant", row.required_text("text")),), row.source)
