"""Probe a chat template by rendering: does it show questions and system prompts?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gladstone.chat.messages import Message
from gladstone.errors import DataError

# words that no template contains
_SYSTEM, _QUESTION = Message("system", "qsystemq"), Message("user", "qquestionq")
CANNOT_RENDER = "the chat template cannot render these turns: "  # precedes a template's own message
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class SystemSupport:
    """Whether the model sees a system prompt; `reason` is the message of a template that refuses one."""

    shown: bool
    reason: str = ""


def probe_system_prompt(render: Render) -> SystemSupport:
    """Render a question with and without a system prompt. `render` must raise DataError for turns it refuses."""
    try:
        return SystemSupport(_SYSTEM.content in render([_SYSTEM, _QUESTION]).casefold())
    except DataError as error:
        try:
            render([_QUESTION])
        except DataError:  # the system prompt is not the cause; the first request reports it
            return SystemSupport(True)
        return SystemSupport(False, str(error).removeprefix(CANNOT_RENDER).rstrip("."))


def probe_question(render: Render) -> bool:
    """Whether the prompt contains the question; True if the template refuses it, which the first request reports."""
    try:
        return _QUESTION.content in render([_QUESTION]).casefold()
    except DataError:
        return True
