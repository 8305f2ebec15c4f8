"""The layout in which prepared sets are written: OpenAI's `messages`, or `text` where a row is plain text."""

from gladstone.chat import Conversation
from gladstone.formats import messages, text
from gladstone.rows import Row


def read(row: Row, source: str) -> Conversation:
    """Either layout. A `source` in the row tells where it came from before it was prepared."""
    source = str(row.get("source") or source)
    return text.read(row, source) if "text" in row else messages.read(row, source)


def write(conversation: Conversation) -> Row:
    """The row that `read` turns back into this conversation."""
    content = {"text": conversation.answer.content} if conversation.is_text else messages.write(conversation)
    return content | {"source": conversation.source}
