"""OpenAI's layout: `messages`, a list of `{role, content}`; an assistant may carry `reasoning_content`."""

from gladstone.chat import ROLES, Conversation, Message
from gladstone.errors import DataError
from gladstone.formats.fields import optional_text, required_text
from gladstone.rows import Row


def read(row: Row, source: str) -> Conversation:
    """Turns in order: an optional system message, then user and assistant in turn, the assistant last."""
    if "messages" not in row:
        raise DataError(f"{source}: no field 'messages'; the row has {', '.join(map(repr, row)) or 'no fields'}.")
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{source}: field 'messages' must be a non-empty list.")
    messages = tuple(_read_turn(turn, f"{source} message {number}") for number, turn in enumerate(turns, 1))
    _check_order(messages, source)
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
        raise DataError(f"{source}: expected an object with role and content, found {type(turn).__name__}.")
    role = required_text(turn, "role", source)
    if role not in ROLES:
        raise DataError(f"{source}: role {role!r}, expected one of {', '.join(ROLES)}.")
    reasoning = optional_text(turn, "reasoning_content", source) if role == "assistant" else None
    return Message(role, required_text(turn, "content", source), reasoning)


def _check_order(messages: tuple[Message, ...], source: str) -> None:
    roles = [message.role for message in messages]
    talk = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(talk) // 2)
    if not talk or talk != expected:
        raise DataError(
            f"{source}: roles are {', '.join(roles)}; expected user and assistant in turn, the assistant last, "
            "with at most one system message in front."
        )
