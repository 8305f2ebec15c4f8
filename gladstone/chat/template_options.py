"""Options for the chat template and its arguments, shared by all commands that prompt a model."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gladstone.errors import ConfigError

if TYPE_CHECKING:
    from gladstone.chat.named_templates import NamedTemplate

Command = Callable[..., Any]
PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}


def template_options(command: Command) -> Command:
    """Add --chat-template and --template-arg to a command."""
    for option in (
        click.option(
            "--template-arg",
            "template_args",
            multiple=True,
            metavar="KEY=VALUE",
            help="Variable of the chat template, for example enable_thinking=false; JSON or text. Repeatable.",
        ),
        click.option(
            "--chat-template",
            metavar="FILE|NAME",
            help="Chat template to use instead of the model's own: a Jinja file, or the name of one of Gladstone's.",
        ),
    ):
        command = option(command)
    return command


def load_chosen_template(options: dict[str, Any]) -> "NamedTemplate | None":
    """The template that --chat-template names, None without the option. Raises ConfigError if there is no such one."""
    from gladstone.chat.named_templates import read_template

    if options["chat_template"] is None:
        return None
    try:
        return read_template(options["chat_template"])
    except ConfigError as error:
        raise ConfigError(f"--chat-template: {error}") from None


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE texts; a value that is not JSON is taken as text.

    Raises ConfigError for any other form, for a repeated name, and for Python's spelling of a JSON value: as a text,
    "False" would count as true in a template.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ConfigError(f"--template-arg {text!r}: expected KEY=VALUE, for example enable_thinking=false.")
        if name in arguments:
            raise ConfigError(f"--template-arg: {name} is given twice.")
        if value.strip() in PYTHON_LITERALS:
            raise ConfigError(f"--template-arg {text!r}: write {name}={PYTHON_LITERALS[value.strip()]}.")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text
