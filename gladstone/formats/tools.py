"""Tool definitions and tool calls: OpenAI's layout, its older `functions`, and ShareGPT's texts."""

import json
from typing import Any

from gladstone.chat.messages import ToolCall
from gladstone.formats.fields import Fields, json_text, parsed_json
from gladstone.rows.row_types import kind_of

DEFINITION = "{type: function, function: {name, description, parameters}}"
CALL = "name and arguments"


def read_tools(row: Fields) -> tuple[str, ...]:
    """Return the row's `tools` (or `functions`), each as JSON in OpenAI's layout; the field may be JSON text itself."""
    for name in ("tools", "functions"):
        if row.has(name):
            tools = listed_values(row, name)
            return tuple(definition(tool, f"tool {number}", row) for number, tool in enumerate(tools, 1))
    row.get("tools")
    return ()


def listed_values(row: Fields, name: str) -> list[Any]:
    """Return a field as a list of values: a list of objects, one object, or the JSON text of either."""
    value = row.get(name)
    if isinstance(value, str):
        value = parsed_json(value, f"field {name!r}", row.source) if value.strip() else []
    if value is None:
        return []
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise row.error(f"field {name!r} is {kind_of(value)}, expected a list of objects.")
    return value


def definition(tool: Any, what: str, row: Fields) -> str:
    """Return a tool definition as JSON in OpenAI's layout; a bare function is wrapped."""
    if isinstance(tool, str):
        tool = parsed_json(tool, what, row.source)
    if not isinstance(tool, dict):
        raise row.error(f"{what} is {kind_of(tool)}, expected {DEFINITION}.")
    if tool.get("type") not in (None, "function"):
        raise row.error(f"{what} has the type {str(tool['type'])[:40]!r}, expected {DEFINITION}.")
    bare = "function" not in tool
    function = {name: value for name, value in tool.items() if name != "type"} if bare else tool["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise row.error(f"{what} has no function with a name, expected {DEFINITION}.")
    if isinstance(function.get("parameters"), str):
        function = function | {"parameters": parsed_json(function["parameters"], f"{what}'s parameters", row.source)}
    return json_text({"type": "function"} | ({} if bare else tool) | {"function": function}, what, row.source)


def read_calls(turn: Fields) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant's turn: `tool_calls`, or the older `function_call`."""
    if turn.has("tool_calls") and turn.has("function_call"):
        raise turn.error("calls are given twice, as tool_calls and as function_call.")
    name = "function_call" if turn.has("function_call") else "tool_calls"
    calls = enumerate(listed_values(turn, name), 1)
    return tuple(_call(turn.within(call, f"{name}[]", f"call {number}", CALL)) for number, call in calls)


def calls_in_text(text: str, turn: Fields) -> tuple[ToolCall, ...]:
    """Parse a text that consists of calls (ShareGPT's function_call): a JSON object with name and arguments, or a list.

    Raises DataError for any other text.
    """
    calls = parsed_json(text, "the function call", turn.source)
    numbered = enumerate(calls if isinstance(calls, list) else [calls], 1)
    parsed = tuple(_call(turn.within(call, "function_call[]", f"call {number}", CALL)) for number, call in numbered)
    if not parsed:
        raise turn.error(f"the function call is an empty list, expected an object with {CALL}.")
    return parsed


def _call(call: Fields) -> ToolCall:
    kind = call.text("type")
    if kind not in (None, "function"):
        raise call.error(f"type {kind[:40]!r}, expected 'function'.")
    named = call.within(call.get("function"), "function", "function", CALL) if call.has("function") else call
    return ToolCall(named.word("name"), _arguments(named), call.text("id"))


def _arguments(call: Fields) -> str:
    """Return the arguments as the text of a JSON object; a text is returned unchanged."""
    value = call.get("arguments")
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    read = parsed_json(value, "field 'arguments'", call.source) if isinstance(value, str) else value
    if not isinstance(read, dict):
        raise call.error(f"field 'arguments' is {kind_of(read)}, expected a JSON object or its text.")
    text = json_text(read, "field 'arguments'", call.source)
    return value if isinstance(value, str) else text


def write_call(call: ToolCall) -> dict[str, Any]:
    """Return a call in OpenAI's layout."""
    named = {"id": call.id} if call.id is not None else {}
    return named | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def write_tools(tools: tuple[str, ...]) -> list[Any]:
    """Parse tool definitions into objects."""
    return [json.loads(tool) for tool in tools]
