"""What stands around a text and says nothing: blank lines before it, space behind it."""

import re

_BLANK_LINES_BEFORE = re.compile(r"\A\s*[\n\r]")
_TABLE = re.compile(r"\S\t+\S")


def trimmed(text: str) -> str:
    """The text without blank lines before it and space behind it; what indents its first line stays, as of code.

    In a table whose columns are separated by tabs, tabs that end a line are empty cells, and stay.
    """
    bare = text.rstrip()
    if "\t" in text[len(bare) :] and is_tabbed(text):
        rest = text[len(bare) :].splitlines()[0]
        bare += rest[: rest.rfind("\t") + 1]
    if not bare[:1].isspace():
        return bare
    return _BLANK_LINES_BEFORE.sub("", bare)


def trimmed_behind(text: str) -> str:
    """The text behind a mark such as `</think>`: trimmed, and without space on the mark's own line."""
    space = text[: len(text) - len(text.lstrip())]
    return trimmed(text if "\n" in space else text.lstrip())


def is_tabbed(text: str) -> bool:
    """True if tabs separate columns."""
    return _TABLE.search(text) is not None
