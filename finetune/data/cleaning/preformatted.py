"""Code, and other text whose layout is part of what it says: found, so that a step can leave it alone."""

import re
from collections.abc import Callable

# a fence may stand in a list or a quotation; one that never closes lasts to the end of the text
_FENCED = (
    r"^[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(?P<fence>`{3,}(?![^\n]*`)|~{3,})[^\n]*"
    r"(?:.*?^[ \t>]*(?P=fence)[`~]*[ \t\r]*$|.*)"
)
_ELEMENT = r"<(?P<tag>pre|code|samp|kbd|textarea|script|style)(?:\s[^<>]*)?>(?:.*?</(?P=tag)\s*>|.*)"
_INDENTED = r"^(?: {4}| {0,3}\t)[^\n]*"
_SPAN = r"`[^`\n]+`"
_FLAGS = re.MULTILINE | re.DOTALL | re.IGNORECASE

BLOCKS = re.compile(f"{_FENCED}|{_ELEMENT}", _FLAGS)  # fenced code and the elements that HTML has for code
INDENTED_TOO = re.compile(f"{_FENCED}|{_ELEMENT}|{_INDENTED}", _FLAGS)  # lines indented by four spaces or a tab as well
MARKDOWN = re.compile(f"{_FENCED}|{_SPAN}", _FLAGS)  # code as Markdown writes it, within a line as well


def outside(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """The text with `change` made to everything but what `kept` finds. Line ends are \\n or \\r\\n."""
    if kept is not INDENTED_TOO and not ("`" in text or "~~~" in text or "<" in text):
        return change(text)
    parts, begin = [], 0
    for found in kept.finditer(text):
        if found.start() > begin:
            parts.append(change(text[begin : found.start()]))
        parts.append(found[0])
        begin = found.end()
    parts.append(change(text[begin:]) if begin < len(text) else "")
    return "".join(parts)
