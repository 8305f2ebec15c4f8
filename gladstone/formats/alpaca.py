"""Stanford Alpaca's layout: `instruction`, `input` (may be empty), `output`; LLaMA-Factory's `system` and `history`."""

from collections.abc import Iterator

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields, assistant_message, checked_text
from gladstone.formats.turns import build_conversation
from gladstone.rows.row_types import kind_of

FIELDS = ("instruction", "output")


def read(row: Fields) -> Conversation:
    """The instruction and its input, separated by a blank line, form the user's turn; `history` precedes it."""
    answer = assistant_message(row.required_text("output", numbers=True), None, row)
    return build_conversation(row, (*_history(row), Message("user", question(row, "input")), answer))


def question(row: Fields, given: str) -> str:
    """Join the instruction and the field `given`, separated by a blank line."""
    instruction = row.required_text("instruction", numbers=True)
    context = row.text(given, numbers=True)
    return f"{instruction}\n\n{context}" if context else instruction


def _history(row: Fields) -> Iterator[Message]:
    """Yield earlier turns from a list of pairs: the user's text and the assistant's answer."""
    for number, pair in enumerate(row.items("history") or (), 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise row.error(f"history {number} is {kind_of(pair)}, expected a pair of the user's text and the answer.")
        asked, answered = (checked_text(text, f"history {number}", row.source) for text in pair)
        if asked is None or answered is None:
            raise row.error(f"history {number}: one of the two texts is empty.")
        yield Message("user", asked)
        yield assistant_message(answered, None, row)
