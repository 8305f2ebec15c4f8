"""Tables as Markdown, as CSV and as aligned columns for a terminal; no cell's text can break its table."""

import csv
import io
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

from gladstone.report.terminal import one_line

Value = str | float | int | None
NARROWEST = 12  # columns: a narrower terminal wraps the lines itself

# an underscore between letters or digits is not markup (CommonMark 6.2), so file names need no backslashes
_MARKDOWN = re.compile(r"([\\`*\[\]<>#|&~!$]|(?<![^\W_])_|_(?![^\W_]))")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet reads a text that starts with one as a formula


class Markdown(str):
    """Text that is already Markdown: `markdown_table` does not escape it."""

    __slots__ = ()


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally: a model's answer can contain links, images and markup.

    >>> escape_markdown("![x](http://a) <b>")
    '\\\\!\\\\[x\\\\](http://a) \\\\<b\\\\>'
    """
    return _MARKDOWN.sub(r"\\\1", text)


def markdown_line(text: str) -> str:
    """Put text on one line and escape it; `Markdown` is not escaped."""
    flat = one_line(text)
    return flat if isinstance(text, Markdown) else escape_markdown(flat)


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """A Markdown table; the columns with an index in `right` are right-aligned.

    >>> print(markdown_table(["name", "rows"], [["a|b", "3"]], right=[1]))
    | name | rows |
    | --- | --: |
    | a\\|b | 3 |
    """
    rule = [Markdown("--:" if index in right else "---") for index in range(len(headers))]
    return "\n".join(f"| {' | '.join(map(markdown_line, cells))} |" for cells in (headers, rule, *rows))


def csv_table(headers: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """A CSV table with unrounded numbers; None is an empty cell, and no spreadsheet runs a cell as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for cells in (headers, *rows):
        writer.writerow([csv_cell(one_line(cell)) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def csv_cell(text: str) -> str:
    """Return the text, with an apostrophe in front if a spreadsheet would run it as a formula.

    >>> csv_cell("=1+1")
    "'=1+1"
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def text_columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Align the rows in columns, two spaces apart; the columns with an index in `right` are right-aligned.

    Widths are terminal columns: wide characters count twice, styles not at all.

    >>> text_columns([["name", "rows"], ["a", "3"]], right=[1])
    ['name  rows', 'a        3']
    """
    widths = [max(map(text_width, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> Iterable[str]:
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        padding = " " * (width - text_width(cell))
        yield padding + cell if index in right else cell + padding


def text_width(text: str) -> int:
    """Width of a text in terminal columns."""
    import click
    from rich.cells import cell_len

    return cell_len(click.unstyle(text))


def text_blocks(headers: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], width: int) -> str:
    """Layout for a narrow terminal: a block for each header, with a line for each row's name and cell.

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
