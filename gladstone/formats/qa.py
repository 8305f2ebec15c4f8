"""Gladstone's own layout: `question`, `answer`, and where there are such `reasoning` and `system`."""

from gladstone.chat import Conversation, Message
from gladstone.formats.fields import assistant_message, optional_text, required_text
from gladstone.rows import Row

FIELDS = ("question", "answer")


def read(row: Row, source: str) -> Conversation:
    """One question, one answer, with the reasoning that leads to it if the row has some."""
    system = optional_text(row, "system", source)
    opening = (Message("system", system),) if system else ()
    question = Message("user", required_text(row, "question", source))
    answer = assistant_message(required_text(row, "answer", source), optional_text(row, "reasoning", source), source)
    return Conversation((*opening, question, answer), source)


def write(conversation: Conversation) -> Row:
    """The row that `read` turns back into this single-turn conversation."""
    roles = tuple(message.role for message in conversation.messages)
    if roles not in (("user", "assistant"), ("system", "user", "assistant")):
        raise ValueError(f"{conversation.source}: {roles} is not one question and one answer")
    row = {"question": conversation.messages[-2].content, "answer": conversation.answer.content}
    if conversation.answer.reasoning:
        row["reasoning"] = conversation.answer.reasoning
    if roles[0] == "system":
        row["system"] = conversation.messages[0].content
    return row
