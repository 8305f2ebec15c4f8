"""Finds the end of an answer from what the chat template writes after one, if the vocabulary does not declare it.

A file may declare another end token than its template writes, or the template may use no token for the end. The model
would then continue and write the user's next question itself.
"""

import re

from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import Markers
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from gladstone.llamacpp.model import Model

_FIRST, _ANSWER, _SECOND = "qfirstq", "qanswerq", "qsecondq"  # words that no template contains

_MARKER = re.compile(r"[<\[|].+[>\]|]")


def find_turn_end(model: Model, template: ChatTemplate, markers: Markers) -> tuple[int | None, str]:
    """The token, or the text, that ends an answer if the vocabulary declares no token of the template as an end.

    (None, "") if the vocabulary declares the end, or if the template writes nothing between two turns.
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
    if any(text in marker for marker in markers.texts):  # gpt-oss closes reasoning with the token that ends an answer
        return None, ""
    return first, ""


def text_behind_answer(template: ChatTemplate) -> str | None:
    """The text that a template writes between an answer and the next question; None if it rewrites or refuses turns."""
    turns = [Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)]
    try:
        text = template.render(turns, add_generation_prompt=True)
    except DataError:
        return None
    _, answer, rest = text.partition(_ANSWER)
    between, question, _ = rest.partition(_SECOND)
    return between if answer and question else None


def _marks(model: Model, token: int, text: str) -> bool:
    """Whether a token is a marker; Gemma's user-defined tokens include line breaks, which are not."""
    return model.is_control(token) or (model.is_user_defined(token) and bool(_MARKER.fullmatch(text)))


def _stop_text(between: str) -> str:
    """The first line of the text between the turns, with a line break before it if the template writes one."""
    line = between.strip().partition("\n")[0].rstrip()
    if not line:
        return ""
    before = between[: between.index(line)]
    return ("\n" if "\n" in before else before) + line
