"""Messages and conversations, the form in which every stage sees a row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
CHAT_CONTEXT_TOKENS = 4096  # a model trained for 128k tokens would take gigabytes for a context nobody asked for
# Small models wander off at the temperatures that large ones like (SmolLM2's own card says 0.2, top-p 0.9), and repeat
# themselves near 0: little randomness, a mild penalty on repeating.
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
    """One turn. Reasoning is kept apart from the answer, so that nobody has to find it in the text again.

    `train` is what the row says of an assistant's turn: score it, do not, or nothing (None). A turn with `tool_calls`
    may have no content; a tool's turn may name the call that it answers (`tool_call_id`) and the tool (`name`).
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
    """Turns that end with the assistant, or plain text as one turn; `source`, `file:line`, opens every error.

    `tools` are the definitions that the assistant may call, each a JSON object as text (OpenAI's layout).
    """

    messages: tuple[Message, ...]
    source: str
    tools: tuple[str, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        """The last turn, the assistant's."""
        return self.messages[-1]

    @property
    def is_text(self) -> bool:
        """True for plain text, to which nothing was said before."""
        return len(self.messages) == 1


def message_fields(message: Message) -> dict[str, Any]:
    """A message as plain values for JSON, without the fields that are unset."""
    return {name: value for name, value in asdict(message).items() if value not in (None, ()) or name == "content"}


def message_of(fields: Mapping[str, Any]) -> Message:
    """The message that `message_fields` took apart."""
    calls = tuple(ToolCall(**call) for call in fields.get("tool_calls", ()))
    return Message(**{**fields, "tool_calls": calls})
