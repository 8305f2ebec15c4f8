"""Finds code and other text whose layout is part of its meaning, so that cleaning steps leave it alone."""

import re
from collections.abc import Callable

# a fence may be inside a list or a quotation; without an end it extends to the end of the text
_FENCED = (
    r"^[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(?P<fence>`{3,}(?![^\n]*`)|~{3,})[^\n]*"
    r"(?:.*?^[ \t>]*(?P=fence)[`~]*[ \t\r]*$|.*)"
)
_ELEMENT = r"<(?P<tag>pre|code|samp|kbd|textarea|script|style)(?:\s[^<>]*)?>(?:.*?</(?P=tag)\s*>|.*)"
_INDENTED = r"^(?: {4}| {0,3}\t)[^\n]*"
_SPAN = r"`[^`\n]+`"
_FLAGS = re.MULTILINE | re.DOTALL | re.IGNORECASE

BLOCKS = re.compile(f"{_FENCED}|{_ELEMENT}", _FLAGS)  # fenced code and HTML's elements for code
INDENTED_TOO = re.compile(f"{_FENCED}|{_ELEMENT}|{_INDENTED}", _FLAGS)  # also lines indented by four spaces or a tab
MARKDOWN = re.compile(f"{_FENCED}|{_SPAN}", _FLAGS)  # Markdown code, blocks and inline


def apply_outside(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the text outside the matches of `kept`. Line ends are \\n or \\r\\n."""
    if kept is not INDENTED_TOO and not ("`" in text or "~~~" in text or "<" in text):
        return change(text)
    parts, begin = [], 0
    for match in kept.finditer(text):
        if match.start() > begin:
            parts.append(change(text[begin : match.start()]))
        parts.append(match[0])
        begin = match.end()
    parts.append(change(text[begin:]) if begin < len(text) else "")
    return "".join(parts)
