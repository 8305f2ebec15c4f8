"""The layout in which prepared sets are written: OpenAI's `messages`, or `text` where a row is plain text."""

from dataclasses import replace

from gladstone.chat import Conversation
from gladstone.formats import messages, text
from gladstone.formats.fields import Fields
from gladstone.rows import Row


def read(row: Fields) -> Conversation:
    """Either layout. A `source` in the row tells where it came from before it was prepared."""
    conversation = text.read(row) if "text" in row else messages.read(row)
    source = row.get("source")
    return replace(conversation, source=str(source)) if source else conversation


def write(conversation: Conversation) -> Row:
    """The row that `read` turns back into this conversation."""
    content = {"text": conversation.answer.content} if conversation.is_text else messages.write(conversation)
    return content | {"source": conversation.source}
