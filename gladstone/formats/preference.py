"""Preference rows, of which only good answers are used: `chosen` and `rejected` (DPO), `label` (KTO)."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats import alpaca, messages, prompt, qa, sharegpt
from gladstone.formats.fields import Fields, assistant_message
from gladstone.formats.notes import LeftOutError
from gladstone.formats.turns import build_conversation, read_turns, turns_of
from gladstone.rows.row_types import readable_fields

CHOSEN = ("chosen", "preferred_output")
REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
LABELS = ("label", "kto_tag")
ASKING = ("prompt", "question", "query")
_LAYOUTS = {
    prompt.FIELDS: prompt.read,
    messages.FIELDS: messages.read,
    sharegpt.FIELDS: sharegpt.read,
    alpaca.FIELDS: alpaca.read,
    qa.FIELDS: qa.read,
}


def read_chosen(row: Fields) -> Conversation:
    """Read the chosen answer and ignore the rejected one. A list of messages that includes the question is read whole.

    A row without a chosen answer is read in its own layout, which holds the answer beside the rejected one.
    """
    name = next((field for field in CHOSEN if field in row), None)
    if name is None:
        return _read_own_layout(row, "a rejected answer")
    if isinstance(row.peek(name), dict):
        return build_conversation(row, (*_prompt_turns(row), *turns_of(row, name, [row.get(name)])))
    if not prompt.is_list(row, name):
        return build_conversation(
            row, (*_prompt_turns(row), assistant_message(row.required_text(name, numbers=True), None, row))
        )
    chosen = read_turns(row, name)
    if chosen and chosen[0].role == "assistant":
        return (
            _with_input(row, chosen)
            if isinstance(row.peek("input"), dict)
            else build_conversation(row, (*_prompt_turns(row), *chosen))
        )
    if row.peek("prompt") in [message.content for message in chosen]:
        row.get("prompt")  # the list repeats the prompt
    return build_conversation(row, chosen)


def _with_input(row: Fields, chosen: tuple[Message, ...]) -> Conversation:
    """Read one of OpenAI's preference rows: `input` holds messages and tools."""
    asked = row.within(row.get("input"), "input", "input", "messages")
    return build_conversation(asked, (*read_turns(asked, "messages"), *chosen))


def _prompt_turns(row: Fields) -> tuple[Message, ...]:
    for name in ("messages", "conversations"):
        if name in row:
            return read_turns(row, name)
    if "instruction" in row:
        return (Message("user", alpaca.question(row, "input")),)
    name = next((field for field in ASKING if field in row), ASKING[0])
    if prompt.is_list(row, name):
        return read_turns(row, name)
    return (Message("user", row.required_text(name, numbers=True)),)


def read_good(row: Fields) -> Conversation:
    """Read a row whose `label` is true, in any layout. Raises LeftOutError for false, DataError for other values."""
    name = next((field for field in LABELS if field in row), LABELS[0])
    good = parse_flag(row.get(name))
    if good is None:
        raise row.error(f"field {name!r} is neither true nor false.")
    if not good:
        raise LeftOutError(f"{name} false: a bad answer")
    return _read_own_layout(row, name)


def _read_own_layout(row: Fields, beside: str) -> Conversation:
    for fields, read in _LAYOUTS.items():
        if all(field in row for field in fields):
            return read(row)
    known = ", ".join(" and ".join(fields) for fields in _LAYOUTS)
    raise row.error(f"expected {known} beside {beside}; the row has {readable_fields(row.names)}.")


def parse_flag(value: object) -> bool | None:
    """Return a boolean, also from its spellings in tables; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().casefold())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None
