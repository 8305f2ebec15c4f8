"""Dolly's layout: `instruction`, `context` (may be empty), `response`."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.alpaca import question
from gladstone.formats.fields import Fields, assistant_message
from gladstone.formats.turns import build_conversation

FIELDS = ("instruction", "response")


def read(row: Fields) -> Conversation:
    """The instruction and its context, separated by a blank line, form the user's turn."""
    given = "context" if row.has("context") else "input"
    answer = assistant_message(row.required_text("response", numbers=True), None, row)
    return build_conversation(row, (Message("user", question(row, given)), answer))
