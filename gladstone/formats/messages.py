"""OpenAI's layout: `messages`, a list of `{role, content}`, optionally with `tools`.

An assistant's turn may have `reasoning_content`, `tool_calls` and `weight`; a tool's turn, `tool_call_id` and `name`.
"""

from typing import Any

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields
from gladstone.formats.tools import write_call, write_tools
from gladstone.formats.turns import read_chat
from gladstone.rows import Row

FIELDS = ("messages",)


def read(row: Fields) -> Conversation:
    """Read the turns in order: an optional system message, then user and assistant alternating, the assistant last."""
    return read_chat(row, "messages")


def write(conversation: Conversation) -> Row:
    """Return the row that `read` turns back into this conversation."""
    row: Row = {"messages": [_turn(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = write_tools(conversation.tools)
    return row


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [write_call(call) for call in message.tool_calls]
    for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            turn[name] = value
    if message.train is not None:
        turn["weight"] = int(message.train)
    return turn
