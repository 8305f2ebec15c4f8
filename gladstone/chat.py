"""Messages and conversations, the form in which every stage sees a row."""

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
CHAT_CONTEXT_TOKENS = 4096  # a model trained for 128k tokens would take gigabytes for a context nobody asked for
# Small models wander off at the temperatures that large ones like (SmolLM2's own card says 0.2, top-p 0.9), and repeat
# themselves near 0: little randomness, a mild penalty on repeating.
CHAT_SAMPLING: dict[str, Any] = {"temperature": 0.3, "top_p": 0.9, "repeat_penalty": 1.1}
NO_MEDICAL_ADVICE = "This is a language model, not a doctor: its answers can be wrong and are no medical advice."


@dataclass(frozen=True)
class Message:
    """One turn. Reasoning is kept apart from the answer, so that nobody has to find it in the text again."""

    role: str
    content: str
    reasoning: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the assistant, or plain text as one turn; `source`, `file:line`, opens every error."""

    messages: tuple[Message, ...]
    source: str

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
