"""PubMedQA's original layout: `QUESTION`, `CONTEXTS`, `LONG_ANSWER` and, where a person gave one, `final_decision`.

The Hub's layout of the same rows is read too: `question`, `context` with a list `contexts`, `long_answer`.
"""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import Fields, checked_text

FIELDS = ("QUESTION", "CONTEXTS", "LONG_ANSWER")
DECISIONS = ("yes", "no", "maybe")


def read(row: Fields) -> Conversation:
    """The abstract's parts stand before the question: the form in which retrieved text is answered from."""
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
    """The question alone: the answer must come from what the model knows."""
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
