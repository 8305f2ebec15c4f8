"""The umbrella command: `gladstone STAGE …` equals `STAGE …`. A stage is imported only when it is called."""

import click

from gladstone import __version__
from gladstone.commands.group import Group

STAGES = {
    "finetune": ("finetune.cli:main", "Fine-tune a model on your rows: rows in, adapter out."),
    "export": ("export.cli:main", "Merge, convert, quantise and prove: adapter in, GGUF out."),
    "runtime": ("runtime.cli:main", "Chat with a GGUF on this machine, without a network."),
    "bench": ("bench.cli:main", "Measure quality and speed of GGUF files, with error bars."),
    "demo": ("gladstone.demo:main", "Run all stages on the embedded model and the embedded rows."),
}


@click.group(cls=Group, lazy=STAGES)
@click.version_option(__version__, prog_name="gladstone")
def main() -> None:
    """Fine-tune a model, export it to GGUF, chat with it offline and measure what each step cost."""
