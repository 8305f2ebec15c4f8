"""TRL's prompt-completion layout: `prompt` and `completion`, both texts."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import assistant_message, required_text
from gladstone.rows import Row

FIELDS = ("prompt", "completion")


def read(row: Row, source: str) -> Conversation:
    """The prompt is the user's turn, the completion the assistant's."""
    answer = assistant_message(required_text(row, "completion", source), None, source)
    return Conversation((Message("user", required_text(row, "prompt", source)), answer), source)
