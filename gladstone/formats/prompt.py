"""TRL's prompt-completion layout: `prompt` and `completion`, both texts or both lists of messages."""

from dataclasses import replace

from gladstone.chat.messages import Conversation, Message
from gladstone.formats.fields import Fields, assistant_message
from gladstone.formats.turns import build_conversation, read_turns

FIELDS = ("prompt", "completion")


def read(row: Fields) -> Conversation:
    """The prompt is the user's turn and the completion the assistant's; lists are read as turns.

    As in TRL, only the completion is scored; assistant turns in the prompt are not.
    """
    return read_prompt_completion(row, "prompt", "completion")


def read_prompt_completion(row: Fields, prompt: str, completion: str) -> Conversation:
    """Return the conversation of a question field and an answer field."""
    asked, answered = _turns(row, prompt, "user"), _turns(row, completion, "assistant")
    if any(message.role == "assistant" for message in asked):
        asked = tuple(_flagged(message, train=False) for message in asked)
        answered = tuple(_flagged(message, train=True) for message in answered)
    return build_conversation(row, (*asked, *answered))


def _turns(row: Fields, name: str, role: str) -> tuple[Message, ...]:
    if is_list(row, name):
        return read_turns(row, name)
    text = row.required_text(name, numbers=True)
    return (assistant_message(text, None, row) if role == "assistant" else Message(role, text),)


def is_list(row: Fields, name: str) -> bool:
    """True if a field holds messages, as a list or as the JSON text of one, as in tables."""
    value = row.peek(name)
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("[{"))


def _flagged(message: Message, *, train: bool) -> Message:
    unset = message.role == "assistant" and message.train is None
    return replace(message, train=train) if unset else message
