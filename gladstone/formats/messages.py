"""OpenAI's layout: `messages`, a list of `{role, content}`; an assistant may carry `reasoning_content`."""

from gladstone.chat import ROLES, Conversation, Message
from gladstone.errors import DataError
from gladstone.formats.fields import assistant_message, optional_text, required_list, required_text
from gladstone.formats.turns import check_order
from gladstone.rows import Row
from gladstone.rows.limits import kind_of

FIELDS = ("messages",)


def read(row: Row, source: str) -> Conversation:
    """Turns in order: an optional system message, then user and assistant in turn, the assistant last."""
    turns = required_list(row, "messages", source)
    messages = tuple(_read_turn(turn, f"{source} message {number}") for number, turn in enumerate(turns, 1))
    check_order(messages, source)
    return Conversation(messages, source)


def write(conversation: Conversation) -> Row:
    """The row that `read` turns back into this conversation."""
    turns = []
    for message in conversation.messages:
        turn = {"role": message.role, "content": message.content}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        turns.append(turn)
    return {"messages": turns}


def _read_turn(turn: object, source: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{source}: expected an object with role and content, found {kind_of(turn)}.")
    role = required_text(turn, "role", source)
    if role not in ROLES:
        raise DataError(f"{source}: role {role[:40]!r}, expected one of {', '.join(ROLES)}.")
    content = required_text(turn, "content", source)
    if role != "assistant":
        return Message(role, content)
    return assistant_message(content, optional_text(turn, "reasoning_content", source), source)
