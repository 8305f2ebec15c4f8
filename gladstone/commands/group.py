"""Glue for the commands: exit codes, lazily imported subcommands, and the extra that installs a missing package."""

import errno
import importlib
import importlib.util
import logging
from typing import Any

import click

from gladstone.errors import GladstoneError
from gladstone.renamed import LOGGER_NAME
from gladstone.report.terminal import visible

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130
# refusals of the file system (permissions, space, names): never a bug, wherever they occur
FILE_SYSTEM_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
NO_TEMPORARY = "No usable temporary directory"  # of tempfile, where none can be written to: the disk is full


class Group(click.Group):
    """A command group that turns errors into one readable message: exit code 0 done, 1 error, 2 usage, 130 Ctrl-C.

    A GladstoneError is such an error, and so is a refusal of the file system that no code handled.
    """

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, resumes: bool = False, **kwargs: Any
    ) -> None:
        """`lazy` maps names to ("module:command", summary). `resumes`: the command continues when it is run again."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}
        self._after_stop = "\nStopped." + (" The same command again finishes the work." if resumes else "")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *self._lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._lazy:
            module, attribute = self._lazy[cmd_name][0].split(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        rows += [(name, summary) for name, (_, summary) in self._lazy.items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        _print_log_records()
        try:
            return super().invoke(ctx)
        except GladstoneError as error:
            click.echo(f"Error: {visible(str(error))}", err=True)
            ctx.exit(EXIT_ERROR)
        except OSError as error:
            if error.errno not in FILE_SYSTEM_ERRORS and NO_TEMPORARY not in str(error.strerror):
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            click.echo(visible(f"Error: {where}{error.strerror}."), err=True)
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            click.echo(self._after_stop, err=True)
            ctx.exit(EXIT_INTERRUPTED)


class _Lines(logging.Handler):
    """Prints each record as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(visible(record.getMessage()), err=True)


def _print_log_records() -> None:
    """Print what the library logs, whatever other libraries have done to the root logger."""
    logger = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
