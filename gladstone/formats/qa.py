"""Gladstone's own layout: `question` and `answer`, optionally `context`, `reasoning` and `system`."""

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields, assistant_message
from gladstone.rows import Row

FIELDS = ("question", "answer")


def read(row: Fields) -> Conversation:
    """One question and one answer, with the row's reasoning if it has any; a context precedes the question."""
    system = row.text("system")
    opening = (Message("system", system),) if system else ()
    question = Message("user", with_context(row, row.required_text("question", numbers=True)))
    answer = assistant_message(row.required_text("answer", numbers=True), row.text("reasoning"), row)
    return Conversation((*opening, question, answer), row.source)


def with_context(row: Fields, question: str) -> str:
    """Prepend the row's `context`, if it has one, to the question."""
    context = row.text("context") if isinstance(row.peek("context"), str) else None
    return f"{context}\n\n{question}" if context else question


def write(conversation: Conversation) -> Row:
    """Return the row that `read` turns back into this single-turn conversation."""
    roles = tuple(message.role for message in conversation.messages)
    if roles not in (("user", "assistant"), ("system", "user", "assistant")):
        raise ValueError(f"{conversation.source}: {roles} is not one question and one answer")
    row = {"question": conversation.messages[-2].content, "answer": conversation.answer.content}
    if conversation.answer.reasoning:
        row["reasoning"] = conversation.answer.reasoning
    if roles[0] == "system":
        row["system"] = conversation.messages[0].content
    return row
