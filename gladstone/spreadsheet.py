"""Texts of others in a CSV file that people open in a spreadsheet."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what makes a spreadsheet take a text for a formula


def cell_text(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet would take for a formula, as spreadsheets write text.

    >>> cell_text("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
