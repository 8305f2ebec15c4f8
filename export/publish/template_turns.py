"""Finds the text a chat template writes around each turn, by rendering markers.

Ollama, which has no Jinja, needs this for a template in its own language. The result is exact or refused: it is
compared with the chat template's rendering of real conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError, UnsupportedError

SYSTEM, FIRST, ANSWER, SECOND = "qsysq", "qfirstq", "qansq", "qsecondq"  # markers that no template treats specially


@dataclass(frozen=True)
class Turns:
    """The texts around each turn, without the BOS token that the runner adds.

    `opening` precedes the first question. `with_system` replaces it: the texts before and after a system prompt, None
    if the template takes none. `user_before` precedes every later question.
    """

    opening: str
    with_system: tuple[str, str] | None
    user_before: str
    user_after: str
    assistant_before: str
    assistant_after: str
    answer: str

    @property
    def alike(self) -> bool:
        """True if the first question starts like later ones."""
        ends = [self.opening, *(self.with_system or ())[1:]]
        return all(each.endswith(self.user_before) for each in ends)

    def render(self, messages: Sequence[Message]) -> str:
        """Render messages up to the next answer, without the reasoning of earlier answers."""
        system = "".join(message.content for message in messages if message.role == "system")
        text = self.opening
        if system and self.with_system:
            text = system.join(self.with_system)
        questions = 0
        for message in messages:
            if message.role == "user":
                text += (self.user_before if questions else "") + message.content + self.user_after
                questions += 1
            elif message.role == "assistant":
                text += self.assistant_before + message.content + self.assistant_after
        return text + self.answer


def read_turns(template: ChatTemplate, bos: str, ends: Sequence[str]) -> Turns:
    """The texts that a template writes around turns; `bos` is added by the runner, `ends` are end-of-turn tokens.

    Raises UnsupportedError if the template does more than that.
    """
    question, answer, second = Message("user", FIRST), Message("assistant", ANSWER), Message("user", SECOND)
    opening, ending = _around(template, [question], bos)
    again, middle, between, last = _around(template, [question, answer, second], bos)
    if (again, last) != (opening, ending):
        raise UnsupportedError("its chat template renders a question differently when others follow or precede it")
    end = next((each for each in ends if each in between), "")
    assistant_after, user_before = _cut(between, end)
    if end and end in middle:
        user_after, assistant_before = _cut(middle, end)
    else:
        user_after = _common_prefix(middle, ending)
        assistant_before = middle.removeprefix(user_after)
    if not ending.startswith(user_after):
        raise UnsupportedError("its chat template ends a question differently when an answer follows")
    system = _around_system(template, question, bos, ending)
    return Turns(
        opening, system, user_before, user_after, assistant_before, assistant_after, ending.removeprefix(user_after)
    )


def _around_system(template: ChatTemplate, question: Message, bos: str, ending: str) -> tuple[str, str] | None:
    """The texts before and after a system prompt; None if the template refuses or drops it."""
    messages = [Message("system", SYSTEM), question]
    try:
        if SYSTEM not in template.render(messages, add_generation_prompt=True):
            return None
    except DataError:
        return None
    before, after, last = _around(template, messages, bos)
    if last != ending:
        raise UnsupportedError("its chat template requests an answer differently with a system prompt")
    return before, after


def check_turns(turns: Turns, template: ChatTemplate, conversations: Sequence[Sequence[Message]], bos: str) -> None:
    """Raises UnsupportedError if the turns render a conversation differently from the template."""
    for messages in conversations:
        plain = [Message(message.role, message.content.strip()) for message in messages]
        if turns.render(plain) != template.render(plain, add_generation_prompt=True).removeprefix(bos):
            raise UnsupportedError("its chat template does more than write text around turns")


def _around(template: ChatTemplate, messages: Sequence[Message], bos: str) -> list[str]:
    """The texts around the messages. Raises UnsupportedError if one is dropped, moved or repeated."""
    text = template.render(messages, add_generation_prompt=True).removeprefix(bos)
    pieces = []
    for message in messages:
        before, mark, text = text.partition(message.content)
        if not mark or message.content in text:
            raise UnsupportedError("its chat template leaves out, moves or repeats a turn")
        pieces.append(before)
    return [*pieces, text]


def _common_prefix(one: str, other: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _cut(text: str, end: str) -> tuple[str, str]:
    """Split the text between turns into the end of one, with its line break, and the start of the next."""
    before, mark, after = text.partition(end) if end else ("", "", text)
    if not mark:
        return "", text
    rest = after.lstrip("\n")
    return before + mark + after[: len(after) - len(rest)], rest
