"""Rows that can be read but not be trained on a base: refused because of its vocabulary or its chat template."""

from collections.abc import Callable, Collection

from gladstone.chat.messages import Conversation
from gladstone.errors import DataError
from gladstone.formats.rendered import advice_for, detect_template
from gladstone.report.terminal import one_line

REASON_CHARS = 140
RowCheck = Callable[[Conversation], None]  # raises RefusedError


class RefusedError(DataError):
    """A row that a base cannot be trained on; `reason` is the same for all rows of one kind."""

    def __init__(self, source: str, detail: str, reason: str = "") -> None:
        super().__init__(f"{source}: {detail}")
        self.detail = detail
        self.reason = one_line(reason or detail.rstrip("."), REASON_CHARS)


def check_plain_text(conversation: Conversation, special_tokens: Collection[str]) -> None:
    """Raise RefusedError if a text contains the text of a special token: it would be tokenised as the token itself."""
    for message in conversation.messages:
        calls = (text for call in message.tool_calls for text in (call.name, call.arguments))
        for text in (message.content, message.reasoning or "", *calls):
            _check_special(
                text,
                (conversation.source, f"{'an' if message.role == 'assistant' else 'a'} {message.role} text"),
                special_tokens,
            )
    for text in conversation.tools:
        _check_special(text, (conversation.source, "a tool's definition"), special_tokens)


def _check_special(text: str, where: tuple[str, str], special_tokens: Collection[str]) -> None:
    source, what = where
    for special in special_tokens:
        if special in text:
            kind = detect_template(text)
            advice = "Remove the marker from the row."
            if kind:
                advice = f"The text is already rendered in the chat template {kind}. {advice_for(kind)}"
            detail = f"{what} contains {special!r}, a special token of the model. {advice}"
            raise RefusedError(source, detail, f"a text contains {special}, a special token")
