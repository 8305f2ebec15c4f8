"""Texts that a chat template has already rendered: recognised by their markers, and parsed back into messages.

Only unambiguous texts are parsed: a marker inside a turn, text between turns and tool turns are refused.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gladstone.chat.messages import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats import pair
from gladstone.formats.fields import Fields, assistant_message
from gladstone.formats.trimming import trim_after_marker
from gladstone.formats.turns import ROLES, build_conversation

FIELDS = ("text",)
FORMAT = "rendered"
Turns = list[tuple[str, str]]  # pairs of role and content

_BEGIN = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]<sop>)\s*)*"
)
_ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eos|>")  # tokens that end a text
_SPACE = re.compile(r"\s*")
_WORDS = {"human": "user", "bot": "assistant"} | {role: role for role in ("system", "user", "assistant")}
_SAID = ("system", "user", "assistant")


@dataclass(frozen=True)
class Markers:
    """How a template marks turns: what opens one, with its role, what ends it, and what cannot occur inside."""

    name: str
    opening: re.Pattern[str]
    end: re.Pattern[str]
    inside: re.Pattern[str]


def _markers(name: str, opening: str, end: str, inside: str) -> Markers:
    return Markers(name, re.compile(opening), re.compile(end), re.compile(inside))


MARKED = (
    _markers("ChatML", r"<\|im_start\|>(\w+)\n", r"<\|im_end\|>", r"<\|im_(?:start|end)\|>"),
    _markers(
        "Llama 3", r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", r"<\|eot_id\|>",
        r"<\|(?:(?:start|end)_header_id|eot_id|eom_id|python_tag)\|>",
    ),
    _markers(
        "Llama 4", r"<\|header_start\|>(\w+)<\|header_end\|>\n\n", r"<\|eot\|>",
        r"<\|(?:header_(?:start|end)|eot|eom|python_start)\|>",
    ),
    _markers("Phi-4", r"<\|im_start\|>(\w+)<\|im_sep\|>\n?", r"<\|im_end\|>", r"<\|im_(?:start|sep|end)\|>"),
    _markers("Gemma", r"<start_of_turn>(\w+)\n", "<end_of_turn>", r"<(?:start|end)_of_turn>"),
    _markers(
        "Zephyr or Phi-3", r"<\|(system|user|assistant)\|>\s*", r"</s>|<\|end\|>",
        r"<\|(?:system|user|assistant|end)\|>|</s>",
    ),
)  # fmt: skip
_ASK, _ASKED, _ANSWERED = "[INST]", "[/INST]", "</s>"
_INST_INSIDE = re.compile(r"\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]|</?s>|<</?SYS>>")
_SYS, _SYS_END = "<<SYS>>", "<</SYS>>"
_HEADING = re.compile(r"^### ?(Instruction|Input|Response) ?:[ \t]*(?:\n|(?=\S))", re.MULTILINE)
_INSTRUCTION, _RESPONSE = (re.compile(rf"^### ?{name} ?:", re.MULTILINE) for name in ("Instruction", "Response"))
_OWN_OPENING = re.compile(
    r"Below is an instruction that describes a task(?:, paired with an input that provides further context)?\. "
    r"Write a response that appropriately completes the request\.\Z"
)
_HASHED = re.compile(r"### ?(Human|User|Assistant|System): ?")
_SPOKEN = re.compile(r"(?:Human|USER|User): .*?\s(?:Assistant|ASSISTANT): ?", re.DOTALL)
# recognised but not parsed: their turns have no end marker, or parts of several kinds
_OTHERS = {"DeepSeek": "<｜User｜>", "gpt-oss": "<|start|>", "Command R": "<|START_OF_TURN_TOKEN|>"}
SPOKEN = "Human: and Assistant:"  # which plain text may contain too
OPENING_CHARS = 600  # allowed before the first heading


def detect_template(text: str) -> str | None:
    """Return the name of the template whose markers open a text; None for any other text."""
    begin = _BEGIN.match(text)
    start = begin.end() if begin else 0
    for markers in MARKED:
        match = markers.opening.match(text, start)
        if match and match[1].casefold() in ROLES:
            return markers.name
    if text.startswith("[INST]", start) and "[/INST]" in text:
        return "Llama 2"
    for name, opening in _OTHERS.items():
        if text.startswith(opening, start):
            return name
    if _HASHED.match(text, start):
        return "### Human:"
    heading = _INSTRUCTION.search(text, start, start + OPENING_CHARS)
    if heading and _RESPONSE.search(text, heading.end()):
        return "Alpaca"
    return SPOKEN if _SPOKEN.match(text, start) else None


def template_of(conversation: Conversation) -> str | None:
    """Return the template that one of the row's texts is rendered in, None if there is none."""
    return next((kind for message in conversation.messages if (kind := detect_template(message.content))), None)


def advice_for(kind: str) -> str:
    """Advise what to do with texts rendered in a template."""
    if kind not in _READERS:
        return "Supply the turns as messages."
    return f"--format {FORMAT} parses the turns into messages; or supply the turns as messages."


def text_of(row: Fields) -> str:
    """Return the rendered text of a row: its `text`, or its question followed by its answer."""
    if "text" in row:
        return _raw_text(row, "text")
    names = pair.find_pair(row.names)
    if names is None:
        raise row.error("expected a field 'text', or a question field and an answer field, with the rendered text.")
    return "".join(_raw_text(row, name) for name in names)


def _raw_text(row: Fields, name: str) -> str:
    row.required_text(name)  # checks it
    return str(row.peek(name))


def read(row: Fields) -> Conversation:
    """Parse the turns of a rendered text by its markers. Raises DataError for an ambiguous text."""
    text = text_of(row)
    kind = detect_template(text)
    if kind not in _READERS:
        raise row.error(
            f"the text does not begin with the markers of a supported chat template ({', '.join(_READERS)})."
        )
    try:
        turns = _READERS[kind](text)
    except ValueError as error:
        raise row.error(f"rendered in {kind}, but {error}; supply its turns as messages.") from None
    return build_conversation(row, tuple(_message(role, content, row) for role, content in turns))


def _message(role: str, content: str, row: Fields) -> Message:
    content = trim_after_marker(content)
    if not content.strip():
        raise row.error(f"the {role}'s turn is empty.")
    return assistant_message(content, None, row) if role == "assistant" else Message(role, content)


def _body(text: str) -> str:
    """The text without the tokens that mark its beginning."""
    begin = _BEGIN.match(text)
    return text[begin.end() if begin else 0 :]


def _without_end(text: str) -> str:
    text = text.rstrip()
    while (end := next((marker for marker in _ENDS if text.endswith(marker)), None)) is not None:
        text = text.removesuffix(end).rstrip()
    return text


def _read_marked(markers: Markers) -> Callable[[str], Turns]:
    return lambda text: list(_marked_turns(_body(text), markers))


def _marked_turns(text: str, markers: Markers) -> Iterator[tuple[str, str]]:
    """Yield the turns; the assistant's last turn may lack its end marker, and end-of-text tokens may follow it."""
    start, stop = 0, len(text.rstrip())
    while start < stop:
        opening = markers.opening.match(text, start)
        if opening is None:
            if not _without_end(text[start:]):
                return
            raise ValueError(f"{_shown(text[start:])} is between two turns")
        role = _role(opening[1])
        end = markers.end.search(text, opening.end())
        if end is None and role != "assistant":
            raise ValueError(f"the {role}'s turn does not end")
        content = text[opening.end() : end.start()] if end else _without_end(text[opening.end() :])
        _check_inside(content, markers.inside)
        yield role, content
        start = _skip_space(text, end.end()) if end else stop


def _skip_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start


def _role(word: str) -> str:
    role = ROLES.get(word.casefold(), "")
    if role not in _SAID:
        raise ValueError(f"a turn has the role {word[:40]!r}, whose tool calls cannot be parsed from text")
    return role


def _check_inside(content: str, inside: re.Pattern[str]) -> None:
    marker = inside.search(content)
    if marker:
        raise ValueError(f"{marker[0]!r} is inside a turn")
    if "<tool_call>" in content:
        raise ValueError("a turn contains '<tool_call>'; such calls need the field tool_calls")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _read_inst(text: str) -> Turns:
    """Parse Llama 2 and Mistral: `[INST] … [/INST] … </s>`, the system text inside the first instruction."""
    body = _without_end(_body(text))
    turns: Turns = []
    start = 0
    while start < len(body):
        if not body.startswith(_ASK, start):
            raise ValueError(f"{_shown(body[start:])} is between two turns")
        asked = body.find(_ASKED, start)
        if asked < 0:
            raise ValueError(f"{_ASK} is not closed")
        stop = body.find(_ANSWERED, asked)
        stop = len(body) if stop < 0 else stop
        turns += _with_system(body[start + len(_ASK) : asked].strip()) if not turns else [
            ("user", body[start + len(_ASK) : asked].strip())
        ]  # fmt: skip
        turns.append(("assistant", body[asked + len(_ASKED) : stop].strip()))
        start = _skip_space(body, stop + len(_ANSWERED))
        if body.startswith("<s>", start):
            start = _skip_space(body, start + len("<s>"))
    for _, content in turns:
        _check_inside(content, _INST_INSIDE)
    return turns


def _with_system(asked: str) -> Turns:
    system, closed, question = asked.removeprefix(_SYS).partition(_SYS_END)
    if not asked.startswith(_SYS) or not closed:
        return [("user", asked)]
    return [("system", system.strip()), ("user", question.strip())]


def _read_alpaca(text: str) -> Turns:
    """Parse `### Instruction:`, optionally `### Input:`, and `### Response:`.

    Alpaca's own opening sentences belong to its template; any other opening is a system text.
    """
    body = _without_end(_body(text))
    headings = list(_HEADING.finditer(body))
    names = [heading[1] for heading in headings]
    if names not in (["Instruction", "Response"], ["Instruction", "Input", "Response"]):
        raise ValueError(f"its headings are {', '.join(names)}, expected Instruction, Input and Response, once each")
    stops = [heading.start() for heading in headings[1:]] + [len(body)]
    parts = [body[heading.end() : stop].strip("\n") for heading, stop in zip(headings, stops, strict=True)]
    opening = body[: headings[0].start()].strip()
    turns: Turns = [("system", opening)] if opening and not _OWN_OPENING.match(opening) else []
    asked = "\n\n".join(part for part in parts[:-1] if part.strip())
    return [*turns, ("user", asked), ("assistant", parts[-1])]


def _read_hashed(text: str) -> Turns:
    """Parse `### Human:` and `### Assistant:`, as in Guanaco's rows."""
    body = _without_end(_body(text))
    headings = list(_HASHED.finditer(body))
    stops = [heading.start() for heading in headings[1:]] + [len(body)]
    spans = zip(headings, stops, strict=True)
    return [(_WORDS[heading[1].casefold()], body[heading.end() : stop].strip()) for heading, stop in spans]


_READERS: dict[str, Callable[[str], Turns]] = {
    **{each.name: _read_marked(each) for each in MARKED},
    "Llama 2": _read_inst,
    "Alpaca": _read_alpaca,
    "### Human:": _read_hashed,
}


def rendered_error(kinds: list[str | None], path: object) -> DataError | None:
    """Return the error for a file most of whose rows are rendered; None if few are, or if the markers are ambiguous."""
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        if kind not in (None, SPOKEN) and count * 2 >= len(kinds):
            return DataError(
                f"{path}: the texts are already rendered in a chat template ({kind}, {count:,} of the first "
                f"{len(kinds):,} rows), so that the markers would be trained as text. {advice_for(kind)} "
                "Any other explicit --format reads them unchanged."
            )
    return None
