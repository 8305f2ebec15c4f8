"""ShareGPT's layout: `conversations`, a list of `{from, value}`, optionally with `system` and `tools`."""

from gladstone.chat.messages import Conversation
from gladstone.formats.fields import Fields
from gladstone.formats.turns import read_chat

FIELDS = ("conversations",)


def read(row: Fields) -> Conversation:
    """Read the turns in order: an optional system message, then human and gpt alternating, gpt last.

    A function_call turn is the assistant's, its text the calls; an observation is a tool result.
    """
    return read_chat(row, "conversations")
