"""ShareGPT's layout: `conversations`, a list of `{from, value}`, and perhaps `system`."""

from gladstone.chat import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats.fields import assistant_message, optional_text, required_list, required_text
from gladstone.formats.turns import check_order
from gladstone.rows import Row
from gladstone.rows.limits import kind_of

FIELDS = ("conversations",)
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read(row: Row, source: str) -> Conversation:
    """Turns in order: an optional system message, then human and gpt in turn, gpt last."""
    turns = required_list(row, "conversations", source)
    messages = tuple(_read_turn(turn, f"{source} turn {number}") for number, turn in enumerate(turns, 1))
    system = optional_text(row, "system", source)
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    check_order(messages, source)
    return Conversation(messages, source)


def _read_turn(turn: object, source: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{source}: expected an object with from and value, found {kind_of(turn)}.")
    role = ROLES.get(required_text(turn, "from", source))
    if role is None:
        raise DataError(f"{source}: from {turn['from'][:40]!r}, expected one of {', '.join(ROLES)}.")
    text = required_text(turn, "value", source)
    return assistant_message(text, None, source) if role == "assistant" else Message(role, text)
