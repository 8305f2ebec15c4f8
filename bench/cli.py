"""The `bench` command."""

from pathlib import Path

import click

from bench.config import DEFAULT_ANSWERS, DEFAULT_ROWS, BenchConfig
from gladstone.chat.messages import CHAT_CONTEXT_TOKENS
from gladstone.chat.template_options import template_options
from gladstone.commands.group import Group
from gladstone.commands.row_options import parse_columns, row_options
from gladstone.formats import FORMAT_NAMES


@click.group(cls=Group)
def main() -> None:
    """Measure GGUF models: quality with confidence intervals, speed with its spread, memory."""


@main.command("run")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Held-out rows: .jsonl, .csv, .parquet, …")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMAT_NAMES)),
    default=BenchConfig.format_name,
    show_default=True,
    help="Row format.",
)
@row_options
@click.option(
    "--skip-bad", is_flag=True, help="Leave out and count rows that cannot be read or that a model cannot process."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=BenchConfig.out, show_default=True, help="Folder for the report."
)
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    default=DEFAULT_ROWS,
    show_default=True,
    help="Measure perplexity on the first N rows.",
)
@click.option(
    "--answers",
    type=click.IntRange(min=2),
    default=DEFAULT_ANSWERS,
    show_default=True,
    help="Generate and score answers to the first N of those rows.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=BenchConfig.max_tokens,
    show_default=True,
    help="Maximum length of an answer in tokens.",
)
@click.option(
    "--reasoning-tokens", type=click.IntRange(min=0), metavar="N", help="End the reasoning of an answer after N tokens."
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help=f"Context size of every model.  [default: the largest that all can have here, at most {CHAT_CONTEXT_TOKENS}]",
)
@click.option(
    "--no-think",
    is_flag=True,
    help="Disable reasoning: set the variable that each chat template reads for it, end reasoning at once, and leave "
    "out the reasoning of references.",
)
@template_options
@click.option(
    "--raw",
    is_flag=True,
    help="Use plain text without a chat template, for base models.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: all cores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Add a metric of the evaluate package, by name or by the path of a script. Repeatable.",
)
@click.option("--regex", metavar="PATTERN", help="Count the answers that match this regular expression as a whole.")
@click.option(
    "--json-schema",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Count the answers that are JSON and valid under this schema.",
)
@click.option(
    "--speed-repeats",
    type=click.IntRange(min=0),
    default=BenchConfig.speed_repeats,
    show_default=True,
    help="Number of timing rounds; 0 skips timing.",
)
def run(columns: tuple[str, ...], **options: object) -> None:
    """Compare MODELS (GGUF files) on the same rows. The first model is the baseline.

    Writes report.html, report.md and report.json.
    """
    from bench.report.terminal import render_summary
    from bench.run import run_bench
    from gladstone.commands.progress import Lines

    config = BenchConfig(columns=tuple(parse_columns(columns).items()), **options)  # type: ignore[arg-type]  # click checked them
    report = run_bench(config, Lines())
    click.echo(render_summary(report, config.out))
