"""What a chat template does with questions and system prompts, found by rendering some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gladstone.chat import Message
from gladstone.errors import DataError

# words that no template writes
_SYSTEM, _QUESTION = Message("system", "qsystemq"), Message("user", "qquestionq")
CANNOT = "the chat template cannot render these turns: "  # begins what a template itself says
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class SystemSupport:
    """Whether the model sees a system prompt; `reason` is what a template says that refuses one."""

    shown: bool
    reason: str = ""


def find_system_support(render: Render) -> SystemSupport:
    """Render a question with and without a system prompt. `render` raises DataError for turns that it refuses."""
    try:
        return SystemSupport(_SYSTEM.content in render([_SYSTEM, _QUESTION]).casefold())
    except DataError as error:
        try:
            render([_QUESTION])
        except DataError:  # it is not the system prompt that it minds: the first question will tell
            return SystemSupport(True)
        return SystemSupport(False, str(error).removeprefix(CANNOT).rstrip("."))


def shows_question(render: Render) -> bool:
    """Whether a question stands in the prompt; True where the template refuses it, which asking will tell."""
    try:
        return _QUESTION.content in render([_QUESTION]).casefold()
    except DataError:
        return True
