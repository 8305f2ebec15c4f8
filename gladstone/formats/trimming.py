"""Trims what surrounds a text without meaning: blank lines before it, white space after it."""

import re

_BLANK_LINES_BEFORE = re.compile(r"\A\s*[\n\r]")
_TABLE = re.compile(r"\S\t+\S")


def trimmed(text: str) -> str:
    """Strip blank lines before the text and white space after it; the first line keeps its indentation, as code needs.

    In a table whose columns are separated by tabs, tabs at the end of a line are empty cells and stay.
    """
    bare = text.rstrip()
    if "\t" in text[len(bare) :] and has_tab_columns(text):
        rest = text[len(bare) :].splitlines()[0]
        bare += rest[: rest.rfind("\t") + 1]
    if not bare[:1].isspace():
        return bare
    return _BLANK_LINES_BEFORE.sub("", bare)


def trim_after_marker(text: str) -> str:
    """Trim the text after a marker such as `</think>`, including white space on the marker's own line."""
    space = text[: len(text) - len(text.lstrip())]
    return trimmed(text if "\n" in space else text.lstrip())


def has_tab_columns(text: str) -> bool:
    """True if tabs separate columns."""
    return _TABLE.search(text) is not None
