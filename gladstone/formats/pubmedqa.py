"""PubMedQA's original layout: `QUESTION`, `CONTEXTS`, `LONG_ANSWER` and, where a person gave one, `final_decision`.

The Hub's layout of the same rows is read too: `question`, `context` with a list `contexts`, `long_answer`.
"""

from gladstone.chat import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats.fields import checked_text, optional_text, required_list, required_text
from gladstone.rows import Row

FIELDS = ("QUESTION", "CONTEXTS", "LONG_ANSWER")
DECISIONS = ("yes", "no", "maybe")


def read(row: Row, source: str) -> Conversation:
    """The abstract's parts stand before the question: the form in which retrieved text is answered from."""
    row = _original(row)
    contexts = [
        checked_text(context, f"context {number}", source)
        for number, context in enumerate(required_list(row, "CONTEXTS", source), 1)
    ]
    given = "\n\n".join(context for context in contexts if context)
    return _conversation(row, f"{given}\n\n{required_text(row, 'QUESTION', source)}", source)


def read_closed(row: Row, source: str) -> Conversation:
    """The question alone: the answer must come from what the model knows."""
    row = _original(row)
    return _conversation(row, required_text(row, "QUESTION", source), source)


def _original(row: Row) -> Row:
    """The row in the original layout, if it is in the Hub's."""
    context = row.get("context")
    if "QUESTION" in row or not isinstance(context, dict):
        return row
    names = {
        "QUESTION": row.get("question"),
        "LONG_ANSWER": row.get("long_answer"),
        "CONTEXTS": context.get("contexts"),
    }
    return names | {"final_decision": row.get("final_decision")}


def _conversation(row: Row, question: str, source: str) -> Conversation:
    answer = required_text(row, "LONG_ANSWER", source)
    decision = optional_text(row, "final_decision", source)
    if decision is not None and decision not in DECISIONS:
        raise DataError(f"{source}: final_decision {decision[:40]!r}, expected one of {', '.join(DECISIONS)}.")
    opening = f"{decision.capitalize()}. " if decision else ""
    return Conversation((Message("user", question), Message("assistant", opening + answer)), source)
