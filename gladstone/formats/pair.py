"""Rows with one question and one answer under common field names: `query` and `response`, and so on."""

from collections.abc import Collection

from gladstone.chat.messages import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats.fields import Fields, assistant_message
from gladstone.formats.qa import with_context

QUESTIONS = ("question", "prompt", "query", "instruction", "input", "input_text")
ANSWERS = ("answer", "response", "output", "completion", "output_text")
SYSTEM = ("system", "system_prompt")


def find_pair(names: Collection[str]) -> tuple[str, str] | None:
    """Return the question field and the answer field; None unless there is exactly one of each."""
    asking = [name for name in QUESTIONS if name in names]
    answering = [name for name in ANSWERS if name in names]
    return (asking[0], answering[0]) if len(asking) == len(answering) == 1 else None


def read(row: Fields) -> Conversation:
    """The two texts become the user's and the assistant's turn, after a `system` or `system_prompt`."""
    names = find_pair(row.names)
    if names is None:
        raise DataError(
            f"{row.source}: expected one field of {', '.join(QUESTIONS)} and one of {', '.join(ANSWERS)}; "
            "name the two fields under columns."
        )
    system = next((text for name in SYSTEM if (text := row.text(name))), None)
    opening = (Message("system", system),) if system else ()
    question = Message("user", with_context(row, row.required_text(names[0], numbers=True)))
    answer = assistant_message(row.required_text(names[1], numbers=True), row.text("reasoning"), row)
    return Conversation((*opening, question, answer), row.source)
