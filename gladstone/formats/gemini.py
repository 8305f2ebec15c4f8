"""Gemini's layout: `contents`, a list of `{role, parts}`, optionally with `systemInstruction` and `tools`.

Both spellings of its keys are accepted, `functionCall` and `function_call`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from gladstone.chat.messages import Conversation, Message, ToolCall
from gladstone.formats.fields import Fields, assistant_message, checked_text, json_text
from gladstone.formats.tools import definition, listed_values
from gladstone.formats.trimming import trimmed
from gladstone.formats.turns import check_order, read_flag
from gladstone.rows.row_types import kind_of, readable_fields

FIELDS = ("contents",)
ROLES = {"user": "user", "model": "assistant", "assistant": "assistant", "function": "tool", "tool": "tool"}


@dataclass
class _Parts:
    """The text, thoughts, calls and tool results in the parts of one turn."""

    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


def read(row: Fields) -> Conversation:
    """Read the turns in order, as in `messages`; thoughts become reasoning, a functionResponse a tool result."""
    turns = enumerate(row.required_items("contents"), 1)
    messages = [
        message
        for number, turn in turns
        for message in _read_turn(row.within(turn, "contents[]", f"content {number}", "role and parts"))
    ]
    system = _system(row)
    opening = (Message("system", system),) if system else ()
    talk = (*opening, *messages)
    check_order(talk, row.source)
    return Conversation(talk, row.source, tuple(_tools(row)))


def _spelled(row: Fields, name: str) -> str:
    """Return the spelling of a key that the row uses: camelCase or snake_case."""
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
    return snake if row.has(snake) else name


def _system(row: Fields) -> str | None:
    name = _spelled(row, "systemInstruction")
    value = row.get(name)
    if not isinstance(value, dict):
        return row.text(name)
    turn = row.within(value, name, name, "parts")
    turn.get("role")  # Gemini ignores it
    return _read_parts(turn).text or None


def _read_turn(turn: Fields) -> Iterator[Message]:
    name = turn.text("role") or "user"
    role = ROLES.get(name.strip().casefold())
    if role is None:
        raise turn.error(f"role {name[:40]!r}, expected user or model.")
    train = read_flag(turn, assistant=role == "assistant")
    parts = _read_parts(turn)
    yield from parts.results
    if role == "assistant":
        if not parts.text and not parts.calls:
            raise turn.error("its parts contain neither text nor a functionCall.")
        thought = parts.thought or None
        message = assistant_message(parts.text, thought, turn, may_be_empty=bool(parts.calls))
        yield replace(message, train=train, tool_calls=tuple(parts.calls))
    elif parts.text:
        yield Message("user", parts.text)
    elif not parts.results:
        raise turn.error("its parts contain no text.")


def _read_parts(turn: Fields) -> _Parts:
    parts = _Parts()
    for number, value in enumerate(turn.required_items("parts"), 1):
        part = turn.within({"text": value} if isinstance(value, str) else value, "parts[]", f"part {number}", "text")
        call, result = _spelled(part, "functionCall"), _spelled(part, "functionResponse")
        if part.has(call):
            parts.calls.append(_call(part.within(part.get(call), call, call, "name and args")))
        elif part.has(result):
            parts.results.append(_result(part.within(part.get(result), result, result, "name and response")))
        elif "text" in part:
            _add_text(parts, part)
        else:
            kinds = readable_fields(part.names)
            raise part.error(f"contains {kinds}; only text can be trained on. Leave such parts or rows out.")
    parts.text, parts.thought = trimmed(parts.text), trimmed(parts.thought)
    return parts


def _add_text(parts: _Parts, part: Fields) -> None:
    text = part.get("text")
    checked_text(text, "field 'text'", part.source)
    if part.get("thought") is True:
        parts.thought += text or ""
    else:
        parts.text += text or ""


def _call(call: Fields) -> ToolCall:
    arguments = call.get("args")
    if arguments is not None and not isinstance(arguments, dict):
        raise call.error(f"field 'args' is {kind_of(arguments)}, expected an object.")
    return ToolCall(call.word("name"), json_text(arguments or {}, "field 'args'", call.source), call.text("id"))


def _result(result: Fields) -> Message:
    response: Any = result.get("response")
    text = response if isinstance(response, str) else json_text(response, "field 'response'", result.source)
    checked_text(text, "field 'response'", result.source)
    return Message("tool", text, tool_call_id=result.text("id"), name=result.word("name"))


def _tools(row: Fields) -> Iterator[str]:
    for number, value in enumerate(listed_values(row, "tools"), 1):
        tool = row.within(value, "tools[]", f"tool {number}", "functionDeclarations")
        name = _spelled(tool, "functionDeclarations")
        if not tool.has(name):
            raise tool.error("expected functionDeclarations; Gemini's built-in tools are not supported.")
        for index, function in enumerate(listed_values(tool, name), 1):
            yield definition(function, f"function {index}", tool)
