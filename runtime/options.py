"""Options that chat and ask have in common, and their defaults."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat import CHAT_SAMPLING
from runtime.console import Waiting
from runtime.sampler import Sampling

if TYPE_CHECKING:
    from runtime.engine import Engine

ASK = Sampling()  # greedy: the same question gives the same answer
CHAT = Sampling(**CHAT_SAMPLING)

_HELP = {
    "temperature": "0 takes the likeliest token each time; higher is more varied.",
    "top_k": "Choose among the K likeliest tokens; 0 for all.",
    "top_p": "Choose among the likeliest tokens that share this probability; 1 for all.",
    "min_p": "Drop tokens below this share of the likeliest one's probability; 0 for none.",
    "repeat_penalty": "Make tokens of the last 64 less likely; 1 for no penalty.",
    "seed": "The same seed gives the same answers.",
    "max_tokens": "Cut an answer after this many tokens.",
}

Command = Callable[..., Any]


def model_argument(command: Command) -> Command:
    """The model file; its own reader says what is wrong with it."""
    return click.argument("model", metavar="MODEL.gguf", type=click.Path(path_type=Path))(command)


def sampling_options(defaults: Sampling) -> Callable[[Command], Command]:
    """One option for each sampling setting."""

    def decorate(command: Command) -> Command:
        for name, text in reversed(_HELP.items()):
            value = getattr(defaults, name)
            flag = f"--{name.replace('_', '-')}"
            command = click.option(flag, type=type(value), default=value, show_default=True, help=text)(command)
        return command

    return decorate


def engine_options(command: Command) -> Command:
    """System prompt, context size, threads, adapters."""
    for option in (
        click.option(
            "--lora", "loras", multiple=True, metavar="FILE[=STRENGTH]", help="Adapter to lay over the model; repeats."
        ),
        click.option("--threads", type=int, help="Threads to compute with.  [default: all processors]"),
        click.option(
            "--context", type=int, metavar="TOKENS", help="Context size.  [default: the model's, at most 4096]"
        ),
        click.option("--system", metavar="TEXT", help="System prompt.  [default: what the model's template says]"),
    ):
        command = option(command)
    return command


def build_sampling(options: dict[str, Any]) -> Sampling:
    """The settings among a command's options. Raises ConfigError that names every wrong one."""
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling) if field.name in options})


def load_engine(model: Path, options: dict[str, Any]) -> "Engine":
    """The engine for a command's options. Raises as `Engine` does."""
    with Waiting(f"loading {model.name}"):
        from gladstone.lora import parse_lora
        from runtime.engine import Engine, EngineOptions

        loras = tuple(map(parse_lora, options["loras"]))
        return Engine(model, EngineOptions(options["context"], threads=options["threads"], loras=loras))
