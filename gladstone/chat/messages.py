"""Messages and conversations: the form of a row in every stage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
CHAT_CONTEXT_TOKENS = 4096  # the full context of a model trained for 128k tokens would take gigabytes
# Small models lose the thread at the temperatures of large ones (SmolLM2's card recommends 0.2, top-p 0.9) and repeat
# themselves near 0: so low randomness and a mild repeat penalty.
CHAT_SAMPLING: dict[str, Any] = {"temperature": 0.3, "top_p": 0.9, "repeat_penalty": 1.1}
NO_MEDICAL_ADVICE = "This is a language model, not a doctor: its answers can be wrong and are no medical advice."


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by the assistant; `arguments` is a JSON object as text, so that it stays hashable."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. Reasoning is kept apart from the answer, so that no code has to parse it out of the text.

    `train` says whether an assistant's turn is scored in training; None if the row does not say. A turn with
    `tool_calls` may have no content; a tool's turn may name the call that it answers (`tool_call_id`) and the tool
    (`name`).
    """

    role: str
    content: str
    reasoning: str | None = None
    train: bool | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the assistant's, or one turn of plain text. `source` (`file:line`) begins every error.

    `tools` are definitions of tools that the assistant may call, each a JSON object as text (OpenAI's layout).
    """

    messages: tuple[Message, ...]
    source: str
    tools: tuple[str, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        """The last turn, the assistant's."""
        return self.messages[-1]

    @property
    def is_text(self) -> bool:
        """True for plain text: a single turn without a prompt."""
        return len(self.messages) == 1


def fields_of_message(message: Message) -> dict[str, Any]:
    """Convert a message to plain JSON values, without unset fields."""
    return {name: value for name, value in asdict(message).items() if value not in (None, ()) or name == "content"}


def message_from_fields(fields: Mapping[str, Any]) -> Message:
    """Rebuild a message from the result of `fields_of_message`."""
    calls = tuple(ToolCall(**call) for call in fields.get("tool_calls", ()))
    return Message(**{**fields, "tool_calls": calls})
