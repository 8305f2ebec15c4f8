"""Messages and conversations, the form in which every stage sees a row."""

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")
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
