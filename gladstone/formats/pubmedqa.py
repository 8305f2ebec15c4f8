"""PubMedQA's original layout: `QUESTION`, `CONTEXTS`, `LONG_ANSWER` and, if annotated, `final_decision`.

The Hub's layout of the same rows is supported too: `question`, `context` with a list `contexts`, `long_answer`.
"""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields, checked_text

FIELDS = ("QUESTION", "CONTEXTS", "LONG_ANSWER")
DECISIONS = ("yes", "no", "maybe")


def read(row: Fields) -> Conversation:
    """The parts of the abstract precede the question, as retrieved text does in a prompt."""
    holder, name = row, "CONTEXTS"
    if _is_of_the_hub(row):
        holder, name = row.within(row.get("context"), "context", "context", "contexts"), "contexts"
    contexts = [
        checked_text(context, f"context {number}", row.source)
        for number, context in enumerate(holder.required_items(name), 1)
    ]
    given = "\n\n".join(context for context in contexts if context)
    return _conversation(row, f"{given}\n\n{_question(row)}")


def read_closed(row: Fields) -> Conversation:
    """The question alone, so that the answer has to come from the model's knowledge."""
    return _conversation(row, _question(row))


def _is_of_the_hub(row: Fields) -> bool:
    return "QUESTION" not in row and isinstance(row.get("context"), dict)


def _question(row: Fields) -> str:
    return row.required_text("question" if _is_of_the_hub(row) else "QUESTION")


def _conversation(row: Fields, question: str) -> Conversation:
    answer = row.required_text("long_answer" if _is_of_the_hub(row) else "LONG_ANSWER")
    decision = row.text("final_decision")
    if decision is not None and decision not in DECISIONS:
        raise row.error(f"final_decision {decision[:40]!r}, expected one of {', '.join(DECISIONS)}.")
    opening = f"{decision.capitalize()}. " if decision else ""
    return Conversation((Message("user", question), Message("assistant", opening + answer)), row.source)
