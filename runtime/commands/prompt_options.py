"""Options for the prompt that chat and ask share: system prompt, chat template, reasoning."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from gladstone.chat.template_options import template_options
from gladstone.errors import ConfigError, DataError

Command = Callable[..., Any]
SystemRole = Literal["system", "user"]
# options that have no effect with --raw
NEEDS_TEMPLATE = {
    "system": "--system", "system_file": "--system-file", "chat_template": "--chat-template",
    "template_args": "--template-arg", "no_think": "--no-think", "reasoning_tokens": "--reasoning-tokens",
}  # fmt: skip


@dataclass(frozen=True)
class PromptSettings:
    """The system prompt, the role it gets, and whether and how long the model may reason."""

    system: str | None = None
    system_as: SystemRole = "system"
    no_think: bool = False
    reasoning_tokens: int | None = None


def prompt_options(command: Command) -> Command:
    """Add the options for system prompt, chat template and reasoning."""
    for option in (
        click.option(
            "--reasoning-tokens", type=click.IntRange(min=0), metavar="N", help="Close the reasoning after N tokens."
        ),
        click.option(
            "--no-think",
            is_flag=True,
            help="Turn reasoning off through the chat template's switch, and close any reasoning at once.",
        ),
        template_options,
        click.option(
            "--system-as",
            type=click.Choice(("system", "user")),
            default="system",
            show_default=True,
            help="Send the system prompt as a turn of its own, or at the start of the first question, for templates "
            "without a system role.",
        ),
        click.option(
            "--system-file", type=click.Path(path_type=Path), metavar="FILE", help="Read the system prompt from a file."
        ),
        click.option(
            "--system", metavar="TEXT", help="System prompt.  [default: the one in the chat template, if any]"
        ),
    ):
        command = option(command)
    return command


def prompt_settings(options: dict[str, Any]) -> PromptSettings:
    """The prompt settings among a command's options.

    Raises UsageError for two system prompts, ConfigError for a file that cannot be read.
    """
    system, file = options["system"], options["system_file"]
    if system is not None and file is not None:
        raise click.UsageError("--system and --system-file exclude each other.")
    if file is not None:
        system = read_text(file).strip()
    return PromptSettings(system or None, options["system_as"], options["no_think"], options["reasoning_tokens"])


def check_raw(options: dict[str, Any]) -> None:
    """Raises UsageError for options that need a chat template, with --raw."""
    unset: tuple[Any, ...] = (None, (), False)
    given = [flag for name, flag in NEEDS_TEMPLATE.items() if not any(options[name] is value for value in unset)]
    if options["raw"] and given:
        raise click.UsageError(f"--raw uses no chat template, so {' and '.join(given)} would have no effect.")


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, or what its byte-order mark says. Raises ConfigError if it cannot be read."""
    from gladstone.rows.encodings import decoded

    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
