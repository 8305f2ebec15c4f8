"""Turns of a conversation in chat layouts: roles, content, flags, calls, and the order that they must have."""

from collections.abc import Sequence
from dataclasses import replace

from gladstone.chat.messages import Conversation, Message, ToolCall
from gladstone.errors import DataError
from gladstone.formats.fields import Fields, assistant_message, checked_text, json_text
from gladstone.formats.tools import calls_in_text, read_calls, read_tools
from gladstone.formats.trimming import trimmed
from gladstone.rows.row_types import kind_of

CALLS = "function_call"
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bard", "bing", "ai", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALLS),
}
KNOWN_ROLES = "system, developer, user, assistant, tool, human, gpt, function_call, observation"
# the value of each flag that marks a turn as scored: OpenAI and Mistral `weight`, axolotl `train`, `training`,
# ms-swift `loss`; torchtune's `masked` has the opposite meaning
FLAGS = {"weight": True, "train": True, "training": True, "loss": True, "mask": False, "masked": False}
REASONING = ("reasoning_content", "reasoning", "thinking")
PARTS_OF_A_TURN = ("train_detail", "training_detail")
TEXT_PARTS = ("text", "input_text", "output_text")


def read_chat(row: Fields, name: str) -> Conversation:
    """Read the conversation from a list of turns, with the row's `system` and `tools`.

    Raises DataError for a turn that cannot be read, and for an invalid order of turns.
    """
    return build_conversation(row, read_turns(row, name))


def build_conversation(row: Fields, messages: tuple[Message, ...]) -> Conversation:
    """Return the conversation of a row's turns, with its `system` and `tools`.

    Raises DataError for an invalid order.
    """
    system = row.text("system")
    if system and messages and messages[0].role == "system":
        if messages[0].content != system:
            raise row.error("the row has two different system texts: the field 'system' and the first turn.")
    elif system:
        messages = (Message("system", system), *messages)
    check_order(messages, row.source)
    return Conversation(messages, row.source, read_tools(row))


def read_turns(row: Fields, name: str) -> tuple[Message, ...]:
    """Read the turns in a field's list of objects; system turns without text are dropped."""
    return turns_of(row, name, row.required_items(name))


def turns_of(row: Fields, name: str, turns: Sequence[object]) -> tuple[Message, ...]:
    """Read turns from objects; errors and notes refer to them by the name of their field."""
    what = {"conversations": "turn", "messages": "message"}.get(name, f"{name} message")
    expected = "from and value" if name == "conversations" else "role and content"
    objects = (row.within(turn, f"{name}[]", f"{what} {number}", expected) for number, turn in enumerate(turns, 1))
    return tuple(message for turn in objects if (message := _read_turn(turn, name)) is not None)


def _read_turn(turn: Fields, name: str) -> Message | None:
    names = ("from", "role") if name == "conversations" else ("role", "from")
    key = next((field for field in names if field in turn), names[0])
    word = turn.word(key)
    role = ROLES.get(word.casefold().replace("-", "_"))
    if role is None:
        raise turn.error(f"{key} {word[:40]!r}, expected one of {KNOWN_ROLES}.")
    content = "value" if "value" in turn and "content" not in turn else "content"
    if key == "from" and content not in turn:
        content = "value"
    train = read_flag(turn, assistant=role in ("assistant", CALLS))
    if role == CALLS:
        return Message("assistant", "", train=train, tool_calls=calls_in_text(turn.required_text(content), turn))
    if role == "assistant":
        return replace(_assistant(turn, content), train=train)
    if role == "tool":
        result = _content(turn, content, objects=True) or ""
        return Message("tool", result, tool_call_id=turn.text("tool_call_id"), name=turn.text("name"))
    text = _content(turn, content)
    if text is None and role == "system":
        return None
    return Message(role, text if text is not None else turn.required_text(content))


def _assistant(turn: Fields, content: str) -> Message:
    calls: tuple[ToolCall, ...] = read_calls(turn)
    reasoning = _reasoning(turn)
    text = _content(turn, content)
    if text is None and not calls:
        turn.require(content)
        raise turn.error(f"field {content!r} is empty.")
    message = assistant_message(text or "", reasoning, turn, may_be_empty=bool(calls))
    return replace(message, tool_calls=calls)


def _reasoning(turn: Fields) -> str | None:
    given = [name for name in REASONING if turn.has(name)]
    texts = {text for name in given if (text := turn.text(name))}
    if len(texts) > 1:
        raise turn.error(f"reasoning is given twice, as {' and '.join(given)}, and they differ.")
    return next(iter(texts), None)


def _content(turn: Fields, name: str, *, objects: bool = False) -> str | None:
    """Return the content of a turn: text, a number, joined text parts, or with `objects` any JSON value as text."""
    value = turn.get(name)
    if isinstance(value, list) and not (objects and not all(_is_part(part) for part in value)):
        parts = "".join(_part(turn, part, f"{name}[]", f"part {number}") for number, part in enumerate(value, 1))
        return (parts if turn.exact else trimmed(parts)) or None
    if objects and isinstance(value, dict | list):
        turn.note_as_text(name, "objects" if isinstance(value, dict) else "lists")
        return json_text(value, f"field {name!r}", turn.source)
    return turn.text(name, numbers=True)


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def _part(turn: Fields, value: object, name: str, what: str) -> str:
    if isinstance(value, str):
        checked_text(value, what, turn.source)
        return value
    part = turn.within(value, name, what, "type and text")
    kind = part.text("type") or "text"
    if kind not in TEXT_PARTS:
        raise part.error(f"has the type {kind[:40]!r}; only text can be trained on. Leave such parts or rows out.")
    part.require("text")
    text = part.get("text")
    checked_text(text, "field 'text'", part.source)
    return text if isinstance(text, str) else ""


def read_flag(turn: Fields, *, assistant: bool) -> bool | None:
    """Return whether a turn is flagged to be scored: True, False, or None if it has no flag.

    Raises DataError for a fractional value, for contradicting flags, and for a scored turn that is not the assistant's.
    """
    for name in PARTS_OF_A_TURN:
        if turn.has(name):
            raise turn.error(f"{name}: a turn is scored as a whole or not at all. Leave the field out.")
    flags = {name: _truth(turn, name) for name in FLAGS if turn.has(name)}
    scored = {FLAGS[name] is truth for name, truth in flags.items()}
    if len(scored) > 1:
        raise turn.error(f"{' and '.join(flags)} contradict each other.")
    if not scored:
        return None
    if not assistant and scored == {True}:
        raise turn.error(f"{next(iter(flags))} marks this turn to be scored, but only the assistant's turns can be.")
    return scored == {True} if assistant else None


def _truth(turn: Fields, name: str) -> bool:
    value = turn.get(name)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    shown = repr(value[:40]) if isinstance(value, str) else value if isinstance(value, int | float) else kind_of(value)
    raise turn.error(f"{name} is {shown}, expected 0 or 1, true or false: a turn is scored or not.")


def check_order(messages: tuple[Message, ...], source: str) -> None:
    """Raise DataError unless user and assistant alternate, the assistant last, after at most one system message.

    Any number of tool results may stand between two turns of the assistant.
    """
    roles = [message.role for message in messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    advice = _advice(talk)
    if not advice:
        return
    shown = ", ".join(roles[:12]) + (f" and {len(roles) - 12} more" if len(roles) > 12 else "")
    raise DataError(
        f"{source}: roles are {shown or 'none'}; expected user and assistant alternating, the assistant last, "
        f"with at most one system message first and tool results after an assistant's turn. {advice}"
    )


_MAY_FOLLOW = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
    "system": (),
}


def _advice(talk: list[str]) -> str:
    """Advise how to fix the first turn that is out of order; '' if none is."""
    before = ""
    for role in talk:
        if role not in _MAY_FOLLOW[before]:
            return _advice_for(before, role)
        before = role
    if before == "assistant":
        return ""
    return "Leave out the turns after the assistant's last, or add its answer." if before else "Add the turns."


def _advice_for(before: str, role: str) -> str:
    if role == "system":
        return "Put the one system message first."
    if role == before:
        return f"Join consecutive turns of the {role}."
    if not before:
        return f"Leave out the {role}'s first turn, or put a user's turn before it."
    return f"A turn of the {role} cannot follow one of the {before}."
