"""How a file of rows is read: options that `finetune data check` and `bench` have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def row_options(command: Command) -> Command:
    """Columns, encoding and sheet."""
    for option in (
        click.option("--sheet", help="Sheet of an Excel workbook.  [default: the first with a header]"),
        click.option(
            "--encoding", help="Text encoding of the file.  [default: UTF-8, or what its bytes show it to be]"
        ),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="NAME=COLUMN",
            help="Where a table of another layout has question, answer, reasoning or system. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """The file's column for each name. Raises UsageError for a text of another form."""
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--column {text!r}: expected NAME=COLUMN, for example question=Frage.")
    return dict(text.split("=", 1) for text in texts)
