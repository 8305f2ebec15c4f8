"""Options that chat and ask have in common, and their defaults."""

import secrets
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat.messages import CHAT_CONTEXT_TOKENS, CHAT_SAMPLING
from gladstone.chat.template_options import load_chosen_template, parse_arguments
from runtime.commands.console import Waiting
from runtime.sampling.sampler import MAX_SEED, Sampling

if TYPE_CHECKING:
    from runtime.engine import Engine

ASK = Sampling()  # greedy: the same question gives the same answer
CHAT = Sampling(**CHAT_SAMPLING)

_HELP = {
    "temperature": "0 takes the likeliest token each time; higher is more varied.",
    "top_k": "Choose among the K likeliest tokens; 0 for all.",
    "top_p": "Choose among the likeliest tokens that share this probability; 1 for all.",
    "min_p": "Drop tokens below this share of the likeliest one's probability; 0 for none.",
    "typical_p": "Choose among the tokens that surprise as much as is expected; 1 for all.",
    "top_n_sigma": "Choose among tokens within so many standard deviations of the best logit; 0 for all.",
    "xtc_probability": "How often the likeliest tokens are left out (XTC); 0 for never.",
    "xtc_threshold": "From which probability on XTC counts a token among the likeliest.",
    "repeat_penalty": "Make tokens that were there lately less likely; 1 for no penalty.",
    "repeat_window": "How many tokens the penalties look back.",
    "frequency_penalty": "The same, more for each time that a token was there; 0 for none.",
    "presence_penalty": "The same, once for each token; 0 for none.",
    "dry_multiplier": "Make the next token of a repetition less likely (DRY); 0 for no.",
    "dry_base": "How fast DRY grows with the length of the repetition.",
    "dry_allowed_length": "Repetitions up to this length are free.",
    "dry_window": "How many tokens DRY looks back.",
    "mirostat": "Keep the surprise of the text constant in place of all filters: version 1 or 2; 0 for no.",
    "mirostat_tau": "The surprise that mirostat aims at.",
    "mirostat_eta": "How fast mirostat corrects itself.",
    "seed": "The same seed gives the same answers; random draws one and says which.",
    "max_tokens": "Cut an answer after this many tokens.",
    "beams": "Search with so many beams (models as T5); 1 for no search.",
    "no_repeat_ngram": "Never write so many tokens in a row twice (models as T5); 0 for no.",
    "length_penalty": "Above 0 beams favour long answers, below 0 short ones.",
}

Command = Callable[..., Any]
CACHE_TYPES = ("f16", "q8_0")  # smaller ones cost more than they save
CACHE_HELP = "What the context is kept in: q8_0 takes half the memory."

MMAP_HELP = (
    "Map the weights' file, or copy it into memory: faster, but no other program can have that memory.  "
    "[default: copy where it is faster and half of the free memory is left]"
)


class DrawnSeed(int):
    """A seed that was drawn: the user is told which, to repeat what it gave."""


class Seed(click.ParamType[Any]):
    """A number, or `random`."""

    name = "N|random"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "random":
            return DrawnSeed(secrets.randbelow(MAX_SEED + 1))
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor random.", param, ctx)


class GpuLayers(click.ParamType[Any]):
    """`auto` or a number of layers."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        try:
            return max(-1, int(value))
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number.", param, ctx)


def model_argument(command: Command) -> Command:
    """The model file; its own reader says what is wrong with it."""
    return click.argument("model", metavar="MODEL.gguf", type=click.Path(path_type=Path))(command)


def sampling_options(defaults: Sampling) -> Callable[[Command], Command]:
    """One option for each sampling setting, and where an answer stops."""

    def decorate(command: Command) -> Command:
        stop = click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text; repeats.")
        command = stop(command)
        for name, text in reversed(_HELP.items()):
            value = getattr(defaults, name)
            flag = f"--{name.replace('_', '-')}"
            kind = Seed() if name == "seed" else type(value)
            command = click.option(flag, type=kind, default=value, show_default=True, help=text)(command)
        return command

    return decorate


def engine_options(command: Command) -> Command:
    """Context size, what computes, adapters, guesses."""
    for option in (
        click.option(
            "--draft", type=click.Path(path_type=Path), metavar="FILE", help="A small model that guesses ahead."
        ),
        click.option("--lookup", is_flag=True, help="Guess ahead from the text itself: faster where answers quote."),
        click.option("--cache-type", type=click.Choice(CACHE_TYPES), default="f16", show_default=True, help=CACHE_HELP),
        click.option(
            "--gpu-layers",
            type=GpuLayers(),
            default="auto",
            show_default=True,
            help="Layers on the GPU: auto or a number.",
        ),
        click.option("--mmap/--no-mmap", default=None, help=MMAP_HELP),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="FILE[=SCALE]",
            help="Adapter to apply to the model. Repeatable.",
        ),
        click.option("--threads", type=int, help="Threads to compute with.  [default: all processors]"),
        click.option(
            "--context",
            type=int,
            metavar="TOKENS",
            help=f"Context size.  [default: the model's, at most {CHAT_CONTEXT_TOKENS}]",
        ),
    ):
        command = option(command)
    return command


def build_sampling(options: dict[str, Any]) -> Sampling:
    """The settings among a command's options. Raises ConfigError that names every wrong one."""
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling) if field.name in options})


def seed_remark(sampling: Sampling) -> str | None:
    """Which seed was drawn, if one was."""
    if not isinstance(sampling.seed, DrawnSeed):
        return None
    if sampling.temperature == 0:
        return "--seed random: at temperature 0 every seed gives the same answer; --temperature 0.7 lets them differ."
    return f"Seed {sampling.seed}: --seed {sampling.seed} gives the same again."


def load_engine(model: Path, options: dict[str, Any]) -> "Engine":
    """The engine for a command's options. Raises as `Engine` does."""
    with Waiting(f"loading {model.name}"):
        from gladstone.llamacpp.lora import parse_lora
        from runtime.engine import Engine, EngineOptions

        return Engine(
            model,
            EngineOptions(
                context_tokens=options["context"],
                threads=options["threads"],
                gpu_layers=options["gpu_layers"],
                cache_type=options["cache_type"],
                mmap=options["mmap"],
                loras=tuple(map(parse_lora, options["loras"])),
                draft=options["draft"],
                lookup=options["lookup"],
                chat_template=load_chosen_template(options),
                template_arguments=parse_arguments(options["template_args"]),
                raw=options.get("raw", False),
            ),
        )
