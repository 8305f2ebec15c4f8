"""Turns as a chat template takes them, tool calls included, and probes of what a template does with tools.

Templates expect calls in different forms: transformers documents arguments as an object, but some templates need JSON
text, no content beside the calls, or ids of nine letters and digits. The words in a template prove nothing: the
rendered text must contain a call's name and arguments.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gladstone.chat.jinja_sandbox import Rendering
from gladstone.chat.messages import Message, ToolCall
from gladstone.errors import DataError
from gladstone.strict_json import json_text

# distinct words that no template contains
_TOOL, _CALL, _SECOND, _KEY, _VALUE, _RESULT = "qtoolq", "qcallq", "qothercallq", "qkeyq", "qvalueq", "qresultq"
_DEFINITION = json_text({
    "type": "function",
    "function": {"name": _TOOL, "description": "a probe", "parameters": {
        "type": "object", "properties": {_KEY: {"type": "string", "description": "a text"}}, "required": [_KEY]}},
})  # fmt: skip
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_QUESTION, _ANSWER = Message("user", "qquestionq"), Message("assistant", "qanswerq")
_SYSTEM = Message("system", "qsystemq")


@dataclass(frozen=True)
class CallStyle:
    """The form in which a template takes a turn with calls; by default the one that transformers documents."""

    arguments_as_text: bool = False
    content_as_none: bool = False  # in a turn with calls and no text
    short_ids: bool = False  # nine letters and digits, as Mistral's templates require


@dataclass(frozen=True)
class ToolSupport:
    """What a template shows of tools. `style` is None if it shows no call; `reason` is then its own error message."""

    style: CallStyle | None
    reason: str
    definitions: bool
    several_calls: bool
    results: bool


def parse_tools(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Parse tool definitions for a template. Raises DataError if one is not a JSON object."""
    return [_json_object(text, "a tool's definition") for text in texts]


def to_template_turns(
    messages: Sequence[Message], style: CallStyle, write: Callable[[Message], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Convert messages to the turns that transformers passes to a template.

    `write` converts role, content and reasoning of one message. A tool's turn without `tool_call_id` gets the id and
    the name of the first unanswered call. Raises DataError if a call's arguments are not a JSON object.
    """
    turns: list[dict[str, Any]] = []
    waiting: list[ToolCall] = []
    for index, message in enumerate(messages):
        turn = write(message)
        if message.tool_calls:
            waiting = [
                replace(call, id=_call_id(call, style, f"{index}:{at}")) for at, call in enumerate(message.tool_calls)
            ]
            turn["tool_calls"] = [_call_fields(call, style) for call in waiting]
            if style.content_as_none and not turn["content"]:
                turn["content"] = None
        elif message.role == "tool":
            turn |= _answer_fields(message, waiting, style)
        turns.append(turn)
    return turns


def _answer_fields(message: Message, waiting: list[ToolCall], style: CallStyle) -> dict[str, str]:
    """Id and name for a tool's turn; removes the call that it answers from `waiting`."""
    own = message.tool_call_id and _styled_id(message.tool_call_id, style)
    call = next((call for call in waiting if own is None or call.id == own), None)
    if call:
        waiting.remove(call)
    fields = {"tool_call_id": own or (call and call.id), "name": message.name or (call and call.name)}
    return {key: value for key, value in fields.items() if value}


def _call_fields(call: ToolCall, style: CallStyle) -> dict[str, Any]:
    arguments = _json_object(call.arguments, f"the arguments of {call.name!r}")
    function = {"name": call.name, "arguments": call.arguments if style.arguments_as_text else arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})


def _call_id(call: ToolCall, style: CallStyle, fallback: str) -> str | None:
    if call.id:
        return _styled_id(call.id, style)
    return _styled_id(fallback, style) if style.short_ids else None


def _styled_id(call_id: str, style: CallStyle) -> str:
    if not style.short_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{what}: not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{what}: expected a JSON object, found {text[:40]!r}.")
    return value


Render = Callable[[Rendering], str]


def probe_tools(render: Render) -> ToolSupport:
    """Find out what a template shows of tools by rendering turns with distinctive words."""
    style, reason = _find_style(render)
    used = style or CallStyle()
    both = _render_probe(
        render, [_QUESTION, _probe_call(_CALL, _SECOND), _probe_result(), _probe_result(), _ANSWER], used
    )
    return ToolSupport(
        style=style,
        reason=reason,
        definitions=any(
            _TOOL in _render_probe(render, turns, used, prompt=True) for turns in ([_QUESTION], [_SYSTEM, _QUESTION])
        ),
        several_calls=_CALL in both and _SECOND in both,
        results=_shows_results(render, style),
    )


def _find_style(render: Render) -> tuple[CallStyle | None, str]:
    """The first style in which the rendered text contains a call, preferring text without Python's own notation."""
    reason, styles = "", []
    for short_ids, content_as_none, as_text in itertools.product((False, True), repeat=3):
        style = CallStyle(as_text, content_as_none, short_ids)
        try:
            text = render(_rendering([_QUESTION, _probe_call(_CALL), _probe_result(), _ANSWER], style))
        except DataError as error:
            reason = reason or str(error)
            continue
        if _CALL in text and _VALUE in text:
            if f"'{_KEY}'" not in text:
                return style, ""
            styles.append(style)
    return (styles[0], "") if styles else (None, reason)


def _shows_results(render: Render, style: CallStyle | None) -> bool:
    """Whether the text contains a tool's result, and not as an answer of the assistant."""
    before = [_QUESTION, _probe_call(_CALL)] if style else [_QUESTION, _ANSWER]
    used = style or CallStyle()
    shown = _render_probe(render, [*before, _probe_result(), _ANSWER], used)
    return _RESULT in shown and shown != _render_probe(render, [*before, Message("assistant", _RESULT), _ANSWER], used)


def _render_probe(render: Render, messages: Sequence[Message], style: CallStyle, *, prompt: bool = False) -> str:
    """The rendered text; '' if the template refuses the turns."""
    try:
        return render(_rendering(messages, style, prompt=prompt))
    except DataError:
        return ""


def _rendering(messages: Sequence[Message], style: CallStyle, *, prompt: bool = False) -> Rendering:
    turns = to_template_turns(messages, style, lambda message: {"role": message.role, "content": message.content})
    return Rendering(turns, prompt, parse_tools([_DEFINITION]))


def _probe_call(*names: str) -> Message:
    calls = (ToolCall(name, json_text({_KEY: _VALUE}), f"call_{index}") for index, name in enumerate(names))
    return Message("assistant", "", tool_calls=tuple(calls))


def _probe_result() -> Message:
    return Message("tool", _RESULT)
