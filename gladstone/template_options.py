"""Which chat template is used, and what it is given: options of every command that asks a model."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gladstone.errors import ConfigError

if TYPE_CHECKING:
    from gladstone.named_templates import NamedTemplate

Command = Callable[..., Any]
PYTHONS = {"True": "true", "False": "false", "None": "null"}


def template_options(command: Command) -> Command:
    """The template, and its arguments."""
    for option in (
        click.option(
            "--template-arg",
            "template_args",
            multiple=True,
            metavar="KEY=VALUE",
            help="A value that the chat template reads by name, as enable_thinking=false; JSON or text; repeats.",
        ),
        click.option(
            "--chat-template",
            metavar="FILE|NAME",
            help="Chat template in place of the model's own: a Jinja file, or the name of one of Gladstone's.",
        ),
    ):
        command = option(command)
    return command


def chosen_template(options: dict[str, Any]) -> "NamedTemplate | None":
    """What --chat-template names. Raises ConfigError if it is not there."""
    from gladstone.named_templates import read_template

    if options["chat_template"] is None:
        return None
    try:
        return read_template(options["chat_template"])
    except ConfigError as error:
        raise ConfigError(f"--chat-template: {error}") from None


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Names and JSON values of KEY=VALUE texts; what is no JSON is a text.

    Raises ConfigError for another form, for a name given twice, and for Python's spelling of a JSON value, which as a
    text would mean the opposite of what it says.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ConfigError(f"--template-arg {text!r}: expected KEY=VALUE, as enable_thinking=false.")
        if name in arguments:
            raise ConfigError(f"--template-arg: {name} is given twice.")
        if value.strip() in PYTHONS:
            raise ConfigError(f"--template-arg {text!r}: write {name}={PYTHONS[value.strip()]}.")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text
