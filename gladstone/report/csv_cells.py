"""Untrusted text in CSV files that users open in a spreadsheet."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a cell that begins with one of these is a formula


def cell_text(text: str) -> str:
    """Return the text, with an apostrophe in front if a spreadsheet would run it as a formula.

    >>> cell_text("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
