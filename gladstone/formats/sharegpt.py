"""ShareGPT's layout: `conversations`, a list of `{from, value}`, and perhaps `system` and `tools`."""

from gladstone.chat import Conversation
from gladstone.formats.fields import Fields
from gladstone.formats.turns import read_talk

FIELDS = ("conversations",)


def read(row: Fields) -> Conversation:
    """Turns in order: an optional system message, then human and gpt in turn, gpt last.

    A function_call turn is the assistant's, its text the calls; an observation is a tool's result.
    """
    return read_talk(row, "conversations")
