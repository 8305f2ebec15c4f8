"""The cleaning steps, each a small pure function, and a record of what they change in a row.

Steps that never change the meaning of a text run unless they are switched off. The others are tried on a copy, to
report how many rows they would change, and run only if the recipe asks for them.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune.config.data import CleaningSection
from finetune.data.cleaning.characters import normalise_characters
from finetune.data.cleaning.preformatted import BLOCKS, INDENTED_TOO, MARKDOWN, apply_outside
from gladstone.chat.messages import Conversation
from gladstone.formats.trimming import has_tab_columns, trimmed

_PRE = re.compile(r"<pre(?:\s[^<>]*)?>(.*?)(?:</pre\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_BREAKS = re.compile(r"<(?:br|/?p|/?div|/?li|/?tr|/?h[1-6]|/?ul|/?ol)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_TAGS = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|center|cite|code|dd|dl|dt|em|font|head|hr|html|i|img|ins|kbd|link|mark|meta|pre"
    r"|q|s|script|section|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|title|tt|u|var)"
    r"(?:\s[^<>]*)?/?>|<!--.*?-->",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LINE_ENDS = re.compile("\r\n?")
_SEPARATORS = re.compile("[\u2028\u2029]")
_SPACE_AT_END = re.compile(r"(?<![^\S\n])[^\S\n]+(?=\n)")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def normalise_unicode(text: str) -> str:
    """Compose characters (NFC) and remove invisible ones without meaning, outside code."""
    if text.isascii() and text.isprintable():
        return text
    return apply_outside(INDENTED_TOO, text, normalise_characters)


def normalise_lines(text: str) -> str:
    """Unify line ends, strip trailing spaces and blank lines around the text; in code, only line ends.

    Two spaces before another line of a paragraph are a Markdown line break and stay.
    """
    if text.isprintable():  # a single line
        return trimmed(text)
    text = _LINE_ENDS.sub("\n", text)
    tabs = has_tab_columns(text)

    def without_space(part: str) -> str:
        return _SPACE_AT_END.sub(lambda space: _trailing_space(space, tabs=tabs), _SEPARATORS.sub("\n", part))

    return trimmed(apply_outside(INDENTED_TOO, text, without_space))


def _trailing_space(space: re.Match[str], *, tabs: bool) -> str:
    """Return what is kept of the space that ends a line: empty cells of a table, a Markdown line break."""
    text, (begin, end) = space.string, space.span()
    if tabs and "\t" in space[0]:
        return space[0][: space[0].rfind("\t") + 1]
    is_break = space[0].startswith("  ") and not space[0].strip(" ") and text[begin - 1 : begin] not in ("", "\n")
    return "  " if is_break and text[end + 1 : end + 2].strip() else ""


def strip_html(text: str) -> str:
    """Remove HTML tags, decode entities, fence preformatted text as Markdown; code stays.

    Only real HTML tags are removed: `p < 0.05` and `<think>` stay.
    """
    return apply_outside(MARKDOWN, text, _strip_tags) if "<" in text or "&" in text else text


def _strip_tags(text: str) -> str:
    parts, begin = [], 0
    for match in _PRE.finditer(text):
        parts += [_plain(text[begin : match.start()]), f"\n```\n{_plain(match[1])}\n```\n"]
        begin = match.end()
    return "".join([*parts, _plain(text[begin:])])


def _plain(text: str) -> str:
    if "<" in text:
        text = _TAGS.sub("", _BREAKS.sub("\n", text))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def normalise_whitespace(text: str) -> str:
    """Collapse spaces and blank lines, remove indentation, unify line ends; code stays."""
    if text.isprintable() and text.isascii() and "  " not in text:  # the common case: one line with single spaces
        return text.strip()
    return apply_outside(BLOCKS, _SEPARATORS.sub("\n", _LINE_ENDS.sub("\n", text)), _single_spaces).strip()


def _single_spaces(text: str) -> str:
    """Strip lines; the first line may continue after code, the last may be continued by code."""
    first, *others = _SPACES.sub(" ", text).split("\n")
    if not others:
        return first
    *inner, last = others
    lines = [first.rstrip(), *(line.strip() for line in inner), last.lstrip()]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines))


Step = Callable[[str], str]
# in the order in which they run: decoded entities may be invisible characters or unusual spaces
STEPS: dict[str, Step] = {
    "html": strip_html,
    "unicode": normalise_unicode,
    "lines": normalise_lines,
    "whitespace": normalise_whitespace,
}


def active_steps(section: CleaningSection) -> dict[str, Step]:
    """Return the steps that run, in order, by the name that they are counted under."""
    return {name: step for name, step in STEPS.items() if getattr(section, name) in (True, "remove")}


def report_only_steps(section: CleaningSection) -> dict[str, Step]:
    """Return the steps that are only tried, to report what they would change."""
    return {name: step for name, step in STEPS.items() if getattr(section, name) == "report"}


def map_texts(conversation: Conversation, change: Step) -> Conversation:
    """Apply a function to every text of the conversation; reasoning that becomes empty is dropped."""
    messages = tuple(
        replace(
            message,
            content=change(message.content),
            reasoning=(change(message.reasoning) or None) if message.reasoning else None,
        )
        for message in conversation.messages
    )
    return conversation if messages == conversation.messages else replace(conversation, messages=messages)


@dataclass(frozen=True)
class Cleaned:
    """A row after the steps; `changed` names steps that changed it, `noted` steps that would."""

    row: Conversation
    changed: tuple[str, ...]
    noted: tuple[str, ...]


def clean(conversation: Conversation, section: CleaningSection) -> Cleaned:
    """Run the configured steps on a row's texts, and try the others."""
    row, changed = conversation, []
    for name, step in active_steps(section).items():
        before, row = row, map_texts(row, step)
        if row is not before:
            changed.append(name)
    noted = tuple(name for name, step in report_only_steps(section).items() if _changes(row, step))
    return Cleaned(row, tuple(changed), noted)


def _changes(row: Conversation, step: Step) -> bool:
    return any(step(text) != text for message in row.messages for text in (message.content, message.reasoning) if text)


def words_key(text: str) -> str:
    """Normalise a text to its words, without case, punctuation and accent encoding, to compare questions."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_NO_WORD.sub(" ", folded).split())


_NO_WORD = re.compile(r"[\W_]+")
