"""Options for reading a file of rows, shared by `finetune data check` and `bench`."""

from collections.abc import Callable, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def row_options(command: Command) -> Command:
    """Add --column, --encoding and --sheet to a command."""
    for option in (
        click.option("--sheet", help="Sheet of an Excel workbook.  [default: the first with a header]"),
        click.option(
            "--encoding",
            callback=_checked_encoding,
            help="Text encoding of the file.  [default: UTF-8, or detected from its bytes]",
        ),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="NAME=COLUMN",
            help="Column that holds question, answer, reasoning or system in a table of another layout. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def _checked_encoding(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    from gladstone.rows import check_encoding

    try:
        return check_encoding(name) if name else None
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """Parse NAME=COLUMN texts into a mapping. Raises UsageError for any other form."""
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--column {text!r}: expected NAME=COLUMN, for example question=Frage.")
    return dict(text.split("=", 1) for text in texts)
