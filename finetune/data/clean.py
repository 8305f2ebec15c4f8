"""Small pure functions: a text without what does not belong there, and the rows that nothing can be learnt from."""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace

from finetune.data.section import CleaningSection
from gladstone.chat import Conversation

# zero-width space and joiner of words, soft hyphen, byte order mark, direction overrides, control characters; the
# zero-width (non-)joiners are kept: Persian, Indic scripts and emoji need them
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff]"
)
_BREAKS = re.compile(r"<(?:br|/?p|/?div|/?li|/?tr|/?h[1-6]|/?ul|/?ol)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_TAGS = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|center|cite|code|dd|dl|dt|em|font|head|hr|html|i|img|ins|kbd|link|mark|meta|pre"
    r"|q|s|script|section|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|title|tt|u|var)"
    r"(?:\s[^<>]*)?/?>|<!--.*?-->",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LINE_ENDS = re.compile("\r\n?|\u0085|\u2028|\u2029")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def normal_unicode(text: str) -> str:
    """Composed characters (NFC) and no invisible ones."""
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    return composed if composed.isprintable() else _INVISIBLE.sub("", composed)


def without_html(text: str) -> str:
    """No HTML tags, entities as their characters. Only tags that HTML has: `p < 0.05`, `<think>` are no tags."""
    if "<" in text:
        text = _TAGS.sub("", _BREAKS.sub("\n", text))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def normal_whitespace(text: str) -> str:
    """One kind of space and of line end, no runs of spaces, at most one blank line, nothing around the text."""
    if text.isprintable() and text.isascii() and "  " not in text:  # most texts: one line, single spaces
        return text.strip()
    text = _SPACES.sub(" ", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()


def text_steps(section: CleaningSection) -> dict[str, Callable[[str], str]]:
    """The steps that a text goes through, in order, by the name under which they are counted."""
    # entities bring in invisible characters and odd spaces, so that HTML goes first
    steps = {"html": without_html, "unicode": normal_unicode, "whitespace": normal_whitespace}
    return {name: step for name, step in steps.items() if getattr(section, name)}


def map_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with every text changed; reasoning that becomes empty is none."""
    messages = tuple(
        replace(
            message,
            content=change(message.content),
            reasoning=(change(message.reasoning) or None) if message.reasoning else None,
        )
        for message in conversation.messages
    )
    return conversation if messages == conversation.messages else replace(conversation, messages=messages)


def words_key(text: str) -> str:
    """A text without case, punctuation or the encoding of its accents: what makes two questions the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_NO_WORD.sub(" ", folded).split())


_NO_WORD = re.compile(r"[\W_]+")


def flaw(conversation: Conversation, section: CleaningSection) -> tuple[str, str] | None:
    """Why a row is left out, as a reason to count and a detail; None where it is kept."""
    contents = [message.content for message in conversation.messages]
    if not all(contents):
        return "empty", "nothing is left of a turn"
    chars = sum(map(len, contents))
    if chars < section.min_chars:
        return "too short", f"{chars} characters, fewer than {section.min_chars}"
    longest = max(map(len, contents))
    if section.max_chars is not None and longest > section.max_chars and not conversation.is_text:
        return "too long", f"a turn of {longest:,} characters, more than {section.max_chars:,}"
    if section.echoes and not conversation.is_text and _is_echo(*contents[-2:]):
        return "echo", "the answer is the question"
    if section.cut_answers != "keep" and is_cut(contents[-1], likely=section.cut_answers == "drop likely"):
        return "cut", f"the answer stops at …{contents[-1][-30:]!r}"
    return None


def _is_echo(question: str, answer: str) -> bool:
    shorter, longer = sorted((len(question), len(answer)))
    return longer < 2 * shorter + 20 and words_key(question) == words_key(answer)


_WHOLE_SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9À-ÖØ-Þ])")
_LIST_ITEM = re.compile(r"^(?:[-*•–#>|]|\(?[0-9a-zA-Z]{1,3}[.)]\s|\|)")
_OPEN_WORDS = frozenset((
    "a", "an", "the", "of", "at", "for", "from", "with", "without", "into", "onto", "than", "as", "and", "or", "but",
    "nor", "which", "who", "whose", "is", "are", "was", "were", "been", "could", "may", "might", "must", "should",
    "would", "such", "its", "their", "his", "between", "including", "because",
))  # fmt: skip


def is_cut(answer: str, *, likely: bool = False) -> bool:
    """True if an answer of several sentences stops in the middle of one: at a word or a sign that ends none.

    With `likely`, also where the last sentence of a paragraph has no end and two before it have; that takes many rows
    whose author left out the last full stop. Words are English. Items of a list, headings, addresses are no sentences.
    """
    text = answer.rstrip()
    last_line = text.rpartition("\n")[2]
    if not (text[-1:].isalpha() or text.endswith((",", "-", "–", "("))) or _LIST_ITEM.match(last_line):
        return False
    sentences = _WHOLE_SENTENCE.split(last_line)
    rest = sentences[-1].split()
    if not text[-1].isalpha() or rest[-1] in _OPEN_WORDS:
        return len(rest) > 1 and (len(sentences) > 1 or "." in text[: -len(last_line)])
    return likely and len(sentences) > 2 and len(rest) > 3 and "." not in rest[-1] and "@" not in rest[-1]
