"""Options that chat and ask share, and their defaults."""

import secrets
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.chat.messages import CHAT_CONTEXT_TOKENS, CHAT_SAMPLING
from gladstone.chat.template_options import load_chosen_template, parse_arguments
from gladstone.commands.group import EXIT_ERROR
from runtime.commands.console import Waiting
from runtime.sampling.sampler import MAX_SEED, Sampling

if TYPE_CHECKING:
    from runtime.engine import Engine

ASK = Sampling()  # greedy: the same question gives the same answer
CHAT = Sampling(**CHAT_SAMPLING)

_HELP = {
    "temperature": "Randomness: 0 always takes the likeliest token.",
    "top_k": "Sample from the K likeliest tokens; 0 for all.",
    "top_p": "Sample from the likeliest tokens whose probabilities sum to this; 1 for all.",
    "min_p": "Drop tokens below this fraction of the likeliest token's probability; 0 for none.",
    "typical_p": "Locally typical sampling with this probability mass; 1 for all.",
    "top_n_sigma": "Sample from tokens within this many standard deviations of the highest logit; 0 for all.",
    "xtc_probability": "Probability of excluding the likeliest tokens (XTC); 0 for never.",
    "xtc_threshold": "Least probability of a token that XTC may exclude.",
    "repeat_penalty": "Penalty on tokens that occurred recently; 1 for none.",
    "repeat_window": "Number of recent tokens that the penalties consider.",
    "frequency_penalty": "Penalty for each recent occurrence of a token; 0 for none.",
    "presence_penalty": "Penalty on each token that occurred recently, however often; 0 for none.",
    "dry_multiplier": "Strength of the DRY penalty on repeated sequences; 0 for none.",
    "dry_base": "Base with which DRY grows with the length of the repetition.",
    "dry_allowed_length": "Longest repetition without a DRY penalty, in tokens.",
    "dry_window": "Number of recent tokens that DRY considers.",
    "mirostat": "Mirostat sampling instead of all filters: version 1 or 2; 0 for off.",
    "mirostat_tau": "Target surprise of mirostat, in bits.",
    "mirostat_eta": "Learning rate of mirostat.",
    "seed": "Random seed: equal seeds give equal answers. random draws one and prints it.",
    "max_tokens": "Most tokens of an answer.",
    "beams": "Number of beams (encoder-decoder models such as T5); 1 for no beam search.",
    "no_repeat_ngram": "Never repeat a run of this many tokens (encoder-decoder models); 0 for off.",
    "length_penalty": "Above 0 beam search favours long answers, below 0 short ones.",
}

Command = Callable[..., Any]
CACHE_TYPES = ("f16", "q8_0")  # smaller ones cost more than they save
CACHE_HELP = "Type of the KV cache: q8_0 takes half the memory."
KV_HELP = "Keep the KV cache on the GPU, with its layers; in memory it leaves room for more layers there."

MMAP_HELP = (
    "Map the file of weights, or copy it into memory, which is faster but keeps the memory from other programs.  "
    "[default: copy if that is faster and leaves half of the free memory]"
)


class DrawnSeed(int):
    """A seed that was drawn at random, and is shown so that the user can repeat the answer."""


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
    """Add the MODEL.gguf argument. The GGUF reader reports a bad file."""
    return click.argument("model", metavar="MODEL.gguf", type=click.Path(path_type=Path))(command)


def sampling_options(defaults: Sampling) -> Callable[[Command], Command]:
    """Add an option for each sampling setting, and --stop."""

    def decorate(command: Command) -> Command:
        stop = click.option(
            "--stop", multiple=True, metavar="TEXT", help="Stop string: end the answer before this text. Repeatable."
        )
        command = stop(command)
        for name, text in reversed(_HELP.items()):
            value = getattr(defaults, name)
            flag = f"--{name.replace('_', '-')}"
            kind = Seed() if name == "seed" else type(value)
            command = click.option(flag, type=kind, default=value, show_default=True, help=text)(command)
        return command

    return decorate


def engine_options(command: Command) -> Command:
    """Add the options of the engine: context, threads, GPU, cache, adapters, drafts."""
    for option in (
        click.option(
            "--draft",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Draft model for speculative decoding: a small GGUF with the same vocabulary.",
        ),
        click.option("--lookup", is_flag=True, help="Draft from the prompt (n-grams): faster if answers quote it."),
        click.option("--cache-type", type=click.Choice(CACHE_TYPES), default="f16", show_default=True, help=CACHE_HELP),
        click.option(
            "--gpu-layers",
            type=GpuLayers(),
            default="auto",
            show_default=True,
            help="Layers to put on the GPU.",
        ),
        click.option("--kv-offload/--no-kv-offload", default=True, show_default=True, help=KV_HELP),
        click.option("--mmap/--no-mmap", default=None, help=MMAP_HELP),
        click.option(
            "--lora", "loras", multiple=True, metavar="FILE[=SCALE]", help="LoRA adapter (GGUF) to apply. Repeatable."
        ),
        click.option("--threads", type=int, help="Threads to compute with.  [default: measured]"),
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
    """The sampling settings among a command's options. Raises ConfigError that names every bad one."""
    return Sampling(**{field.name: options[field.name] for field in fields(Sampling) if field.name in options})


def seed_remark(sampling: Sampling) -> str | None:
    """The line that shows a drawn seed; None if the user gave it."""
    if not isinstance(sampling.seed, DrawnSeed):
        return None
    if sampling.temperature == 0:
        return "--seed random has no effect at temperature 0: every seed gives the same answer. Try --temperature 0.7."
    return f"Seed {sampling.seed}: --seed {sampling.seed} repeats this answer."


def load_engine(model: Path, options: dict[str, Any]) -> "Engine":
    """Open the engine that a command's options describe. Raises what `Engine` raises."""
    with Waiting(f"loading {model.name}"):
        from gladstone.llamacpp.abort import exit_on_abort
        from gladstone.llamacpp.lora import parse_lora
        from runtime.engine import Engine, EngineOptions

        exit_on_abort(EXIT_ERROR)
        return Engine(
            model,
            EngineOptions(
                context_tokens=options["context"],
                threads=options["threads"],
                gpu_layers=options["gpu_layers"],
                cache_type=options["cache_type"],
                kv_offload=options["kv_offload"],
                mmap=options["mmap"],
                loras=tuple(map(parse_lora, options["loras"])),
                draft=options["draft"],
                lookup=options["lookup"],
                chat_template=load_chosen_template(options),
                template_arguments=parse_arguments(options["template_args"]),
                raw=options.get("raw", False),
            ),
        )
