"""How a question is put to a model: options that chat and ask have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from gladstone.chat.template_options import template_options
from gladstone.errors import ConfigError, DataError

Command = Callable[..., Any]
SystemRole = Literal["system", "user"]
# what --raw leaves without an effect
NEEDS_TEMPLATE = {
    "system": "--system", "system_file": "--system-file", "chat_template": "--chat-template",
    "template_args": "--template-arg", "no_think": "--no-think", "reasoning_tokens": "--reasoning-tokens",
}  # fmt: skip


@dataclass(frozen=True)
class PromptSettings:
    """The system prompt and where it goes, and what a model may think."""

    system: str | None = None
    system_as: SystemRole = "system"
    no_think: bool = False
    reasoning_tokens: int | None = None


def prompt_options(command: Command) -> Command:
    """System prompt, template and thinking."""
    for option in (
        click.option(
            "--reasoning-tokens", type=click.IntRange(min=0), metavar="N", help="Close a thought after N tokens."
        ),
        click.option(
            "--no-think",
            is_flag=True,
            help="Turn thinking off by what the chat template reads for it, and close a thought at once.",
        ),
        template_options,
        click.option(
            "--system-as",
            type=click.Choice(("system", "user")),
            default="system",
            show_default=True,
            help="The system prompt is a turn of its own, or stands before the first question: for templates that know "
            "no system prompt.",
        ),
        click.option("--system-file", type=click.Path(path_type=Path), metavar="FILE", help="System prompt in a file."),
        click.option("--system", metavar="TEXT", help="System prompt.  [default: what the model's template says]"),
    ):
        command = option(command)
    return command


def prompt_settings(options: dict[str, Any]) -> PromptSettings:
    """The settings among a command's options. Raises UsageError for two system prompts, ConfigError for no file."""
    system, file = options["system"], options["system_file"]
    if system is not None and file is not None:
        raise click.UsageError("--system and --system-file exclude each other.")
    if file is not None:
        system = read_text(file).strip()
    return PromptSettings(system or None, options["system_as"], options["no_think"], options["reasoning_tokens"])


def check_raw(options: dict[str, Any]) -> None:
    """Raises UsageError for what only a chat template could do."""
    unset: tuple[Any, ...] = (None, (), False)
    wrong = [flag for name, flag in NEEDS_TEMPLATE.items() if not any(options[name] is each for each in unset)]
    if options["raw"] and wrong:
        raise click.UsageError(f"--raw uses no chat template, so {' and '.join(wrong)} would change nothing.")


def read_text(path: Path) -> str:
    """A file's text, as UTF-8 or behind a byte-order mark. Raises ConfigError if it cannot be read."""
    from gladstone.rows.encodings import decoded

    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
