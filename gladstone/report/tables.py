"""Tables of text cells as Markdown, as CSV and as aligned columns for a terminal; no cell can break its table."""

import csv
import io
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

from gladstone.report.terminal import one_line

Value = str | float | int | None
NARROWEST = 12  # columns: a narrower terminal breaks the lines itself

# an underscore between letters or digits is not markup (CommonMark 6.2), so file names need no backslashes
_MARKDOWN = re.compile(r"([\\`*\[\]<>#|&~!$]|(?<![^\W_])_|_(?![^\W_]))")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet reads a text that starts with one as a formula


class Markdown(str):
    """Text that is Markdown already: `markdown_table` takes it as it is."""

    __slots__ = ()


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: a model's answer can hold links, images and markup.

    >>> escape_markdown("![x](http://a) <b>")
    '\\\\!\\\\[x\\\\](http://a) \\\\<b\\\\>'
    """
    return _MARKDOWN.sub(r"\\\1", text)


def markdown_line(text: str) -> str:
    """Text on one line, escaped; `Markdown` is only put on one line."""
    flat = one_line(text)
    return flat if isinstance(text, Markdown) else escape_markdown(flat)


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """A table whose columns with an index in `right` are aligned to the right.

    >>> print(markdown_table(["name", "rows"], [["a|b", "3"]], right=[1]))
    | name | rows |
    | --- | --: |
    | a\\|b | 3 |
    """
    rule = [Markdown("--:" if place in right else "---") for place in range(len(headers))]
    return "\n".join(f"| {' | '.join(map(markdown_line, cells))} |" for cells in (headers, rule, *rows))


def csv_table(headers: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """Lines of CSV with numbers in full; None is an empty cell, and no text is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for cells in (headers, *rows):
        writer.writerow([csv_cell(one_line(cell)) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def csv_cell(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet reads as a formula, as spreadsheets write text.

    >>> csv_cell("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def text_columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """The rows as lines of aligned columns, two spaces apart; columns with an index in `right` end flush.

    Widths are those on a terminal: wide characters count twice, styles not at all.

    >>> text_columns([["name", "rows"], ["a", "3"]], right=[1])
    ['name  rows', 'a        3']
    """
    widths = [max(map(text_width, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> Iterable[str]:
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        padding = " " * (width - text_width(cell))
        yield padding + cell if place in right else cell + padding


def text_width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    import click
    from rich.cells import cell_len

    return cell_len(click.unstyle(text))


def text_blocks(headers: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], width: int) -> str:
    """For a terminal that is too narrow for columns: a block for each header, with a line for each row's name and cell.

    >>> print(text_blocks(["a", "b"], [("rows", ["3", "4"])], 20))
    a
      rows: 3
    <BLANKLINE>
    b
      rows: 4
    """
    blocks: list[list[str]] = [[header] for header in headers]
    for name, cells in rows:
        for block, cell in zip(blocks, cells, strict=True):
            block.extend(
                textwrap.wrap(f"{name}: {cell}", max(width, NARROWEST), initial_indent="  ", subsequent_indent="    ")
            )
    return "\n\n".join("\n".join(block) for block in blocks)
