"""Where an answer ends by what the chat template writes behind one, in case the vocabulary does not say it.

A file may declare another token as the end than the one that its template writes, or a template may mark no end with a
token at all: the model would then go on and ask itself the next question.
"""

import re

from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import Markers
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from gladstone.llamacpp.model import Model

_FIRST, _ANSWER, _SECOND = "qfirstq", "qanswerq", "qsecondq"  # words that no template writes

_MARKER = re.compile(r"[<\[|].+[>\]|]")


def find_turn_end(model: Model, template: ChatTemplate, markers: Markers) -> tuple[int | None, str]:
    """A token, or a text, that ends an answer although the vocabulary calls no token of the template's an end.

    (None, "") where the vocabulary knows the end, and where the template has nothing between two turns.
    """
    between = text_behind_answer(template)
    if between is None or model.has_encoder:
        return None, ""
    tokens = model.tokenize(between, parse_special=True)
    if any(map(model.ends_generation, tokens)):
        return None, ""
    texts = {token: model.piece(token, special=True).decode("utf-8", "replace") for token in tokens}
    first = next((token for token in tokens if _marks(model, token, texts[token])), None)
    if first is None:
        return None, _stop_text(between)
    text = texts[first]
    if any(text in marker for marker in markers.texts):  # gpt-oss ends its thoughts with the token behind an answer
        return None, ""
    return first, ""


def text_behind_answer(template: ChatTemplate) -> str | None:
    """What a template writes between an answer and the next question; None if it refuses or rewrites these turns."""
    turns = [Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)]
    try:
        text = template.render(turns, add_generation_prompt=True)
    except DataError:
        return None
    _, answer, rest = text.partition(_ANSWER)
    between, question, _ = rest.partition(_SECOND)
    return between if answer and question else None


def _marks(model: Model, token: int, text: str) -> bool:
    """Whether a token is there to mark something: Gemma's "user-defined" ones are line breaks too."""
    return model.is_control(token) or (model.is_user_defined(token) and bool(_MARKER.fullmatch(text)))


def _stop_text(between: str) -> str:
    """The first line of what comes next, on a line of its own where the template begins one for it."""
    line = between.strip().partition("\n")[0].rstrip()
    if not line:
        return ""
    before = between[: between.index(line)]
    return ("\n" if "\n" in before else before) + line
