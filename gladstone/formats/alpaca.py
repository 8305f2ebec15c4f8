"""Stanford Alpaca's layout: `instruction`, `input` (may be empty), `output`."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import assistant_message, optional_text, required_text
from gladstone.rows import Row

FIELDS = ("instruction", "output")


def read(row: Row, source: str) -> Conversation:
    """The instruction and its input, a blank line between them, are the user's turn."""
    instruction = required_text(row, "instruction", source)
    given = optional_text(row, "input", source)
    question = f"{instruction}\n\n{given}" if given else instruction
    answer = assistant_message(required_text(row, "output", source), None, source)
    return Conversation((Message("user", question), answer), source)
