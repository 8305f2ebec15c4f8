"""The layout of prepared sets: OpenAI's `messages`, or `text` for plain text."""

from dataclasses import replace

from gladstone.chat.messages import Conversation
from gladstone.formats import messages, text
from gladstone.formats.fields import Fields
from gladstone.rows import Row


def read(row: Fields) -> Conversation:
    """Read either layout. `source` in the row is the place that the row came from before it was prepared."""
    conversation = text.read(row) if "text" in row else messages.read(row)
    source = row.get("source")
    return replace(conversation, source=str(source)) if source else conversation


def write(conversation: Conversation) -> Row:
    """Return the row that `read` turns back into this conversation."""
    content = {"text": conversation.answer.content} if conversation.is_text else messages.write(conversation)
    return content | {"source": conversation.source}
