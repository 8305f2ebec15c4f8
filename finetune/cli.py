"""The command `finetune`."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gladstone import run_folder
from gladstone.commands.device_option import device_option
from gladstone.commands.group import EXIT_INTERRUPTED, Group
from gladstone.commands.shell import command_line
from gladstone.machine.gpu import WANTED, Wanted
from gladstone.machine.packages import require_packages
from gladstone.strict_json import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune.config.schema import Recipe
    from finetune.run import RunResult
    from finetune.train.verdict import RunWarning

EXIT_SIGNALS = {"Ctrl-C": EXIT_INTERRUPTED, "SIGTERM": 143}

LAZY = {
    "data": ("finetune.reports.data_commands:data", "Check, clean, divide and compare data files."),
    "sweep": ("finetune.sweep.commands:sweep", "Run a recipe with many settings, and compare the runs in a table."),
}


@click.group(cls=Group, resumes=True, lazy=LAZY)
def main() -> None:
    """Fine-tune a model on your rows with QLoRA: rows in, adapter out."""


class RecipeCommand(click.Command):
    """A command whose help ends with the fields of a recipe and their descriptions."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from finetune.config.field_help import field_help

        with formatter.section("Fields of a recipe, for --set"):
            formatter.write_dl(field_help())


@main.command(cls=RecipeCommand)
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Train on this file instead of the recipe's rows.")
@click.option("--format", "format_name", help="Row format of --data.  [default: auto]")
@click.option("--skip-bad", is_flag=True, help="Drop and count rows that cannot be read, or that the base refuses.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/NAME]")
@click.option(
    "--resume", is_flag=True, help="Resume from the newest whole checkpoint in --out; start if there is none."
)
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Save a checkpoint and stop within this many hours.",
)
@click.option(
    "--max-steps", type=click.IntRange(min=1), help="Save a checkpoint and stop after this many steps of this call."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Save a checkpoint and stop after this many tokens of this call."
)
@click.option("--fit", "fitted", is_flag=True, help="Change the recipe so that it fits; the effective batch stays.")
@device_option
def run(  # noqa: PLR0913, PLR0917 - one parameter an option
    recipe: str | None,
    data: Path | None,
    format_name: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    max_hours: float | None,
    max_steps: int | None,
    max_tokens: int | None,
    device: Wanted,
    *,
    skip_bad: bool,
    resume: bool,
    fitted: bool,
) -> None:
    """Train RECIPE: a name from `finetune recipes` or a YAML file.

    Without RECIPE, the rows of --data are trained for one epoch with the recipe smollm2-135m, or without --data the
    demo is trained. --set overrides the recipe.
    """
    from finetune.config.load import read_recipe
    from finetune.monitor.live_view import LiveView, make_display
    from finetune.train.stop_conditions import CallLimits

    limits = CallLimits(max_hours, max_steps, max_tokens)
    if format_name is not None and data is None:
        raise click.UsageError("--format describes --data, which is not given.")
    if recipe is None and resume and out is not None:
        recipe = str(out / run_folder.RECIPE)  # the recipe of this folder's run
        if not Path(recipe).is_file():
            raise click.UsageError(f"{out} holds no run to resume. Name a RECIPE to start one.")
    source = (str(data), format_name or "auto") if data is not None else None
    read = read_recipe(recipe, [*overrides, *(["data.skip_bad=true"] if skip_bad else [])], source)
    loaded = read.recipe
    require_packages("finetune", "finetune", ["torch", "unsloth", "peft", "bitsandbytes", "datasets"])
    from finetune.model.distributed import is_main_process
    from finetune.run import run as run_recipe
    from finetune.train.checkpoint import FOLDER, saved
    from finetune.train.session import CallOptions

    if fitted and is_main_process():  # the other processes get the first one's recipe
        loaded = _fitted(loaded, device)
    folder = out or Path("runs") / loaded.name
    display = make_display()
    callbacks = (display,) if isinstance(display, LiveView) else ()
    options = CallOptions(resume, limits, callbacks, display.show, read.notes, device=device)
    try:
        result = run_recipe(loaded, folder, display, options)
    except KeyboardInterrupt:
        if not saved(folder / FOLDER):
            raise
        click.echo(f"\nStopped at once. Resume from the newest checkpoint: {_resume(folder, device)}", err=True)
        click.get_current_context().exit(EXIT_INTERRUPTED)
    if is_main_process():
        _report(result, device)


@main.command(cls=RecipeCommand)
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Use this file instead of the recipe's rows.")
@click.option("--format", "format_name", help="Row format of --data.  [default: auto]")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
@click.option(
    "--device",
    default="auto",
    help="Estimate for this machine (auto, cuda, cpu) or another device: t4, p100, v100, l4, a10, a100, h100, 6gb, "
    "8gb, 12gb, …",
    show_default=True,
)
@click.option("--fit", "fitted", is_flag=True, help="Change the recipe so that it fits; the effective batch stays.")
@click.option("--json", "as_data", is_flag=True, help="Print the numbers as JSON.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the numbers as JSON.")
def estimate(  # noqa: PLR0913, PLR0917 - one parameter an option
    recipe: str | None,
    data: Path | None,
    format_name: str | None,
    overrides: tuple[str, ...],
    device: str,
    out: Path | None,
    *,
    fitted: bool,
    as_data: bool,
) -> None:
    """Estimate memory, disk and time of a run of RECIPE. No model is downloaded, nothing is trained."""
    from dataclasses import replace

    from finetune.config.load import read_recipe
    from finetune.sizing.devices import find_device
    from gladstone.artifacts import check_room_for, write_json
    from gladstone.commands.progress import Lines

    if out is not None:
        check_room_for(out.parent)
    if format_name is not None and data is None:
        raise click.UsageError("--format describes --data, which is not given.")
    if device not in WANTED:
        find_device(device)  # an unknown device fails before anything is loaded
    read = read_recipe(recipe, [*overrides], (str(data), format_name or "auto") if data is not None else None)
    require_packages("finetune estimate", "finetune", ["torch", "unsloth", "peft", "bitsandbytes", "datasets"])
    from finetune.estimate.estimate import estimate as estimate_recipe
    from finetune.estimate.text import as_json, lines

    result = estimate_recipe(read.recipe, Lines(), device, fitted=fitted)
    result = replace(result, notes=(*read.notes, *result.notes))
    if out is not None:
        write_json(out, as_json(result))
    click.echo(json_text(as_json(result)) if as_data else "\n".join(lines(result)))


def _fitted(recipe: "Recipe", device: Wanted) -> "Recipe":
    """Return the recipe, changed so that it fits into this machine, and print the changes."""
    from finetune.estimate.estimate import estimate as estimate_recipe
    from gladstone.commands.progress import Lines

    option = estimate_recipe(recipe, Lines(), device, fitted=True).applied
    if option is None or not option.changes:
        return recipe
    lost = f" ({option.lost_rows:,} training rows are lost)" if option.lost_rows else ""
    click.echo(f"To fit: {' '.join(option.set_lines)}{lost}")
    return option.recipe


def _report(result: "RunResult", device: Wanted) -> None:
    """Print the result of a run and the next command; exit with 130 or 143 if a signal stopped it.

    A finished run exits with 0, whatever it learnt: its files are whole, and export asks before it uses them.
    """
    steps = "1 step" if result.steps == 1 else f"{result.steps} steps"
    speed = f"{steps}, {result.tokens_per_s:.0f} tokens/s"
    for warning in result.warnings:
        if not warning.serious:
            click.echo(f"Note: {warning.text}.")
    serious = [warning for warning in result.warnings if warning.serious]
    if result.stopped:
        made = f"after {speed}; everything is saved" if result.steps else "before the first step"
        click.echo(f"Stopped by {result.stopped} {made}.\nResume: {_resume(result.folder, device)}")
        _warn(serious)
        click.get_current_context().exit(EXIT_SIGNALS.get(result.stopped, 0))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result.shares.items())
    if result.loss_before is None or result.loss_after is None:
        loss = f"Held-out loss: not measured, the run has no test rows ({speed})."
    else:
        losses = f"{result.loss_before:.3f} → {result.loss_after:.3f}"
        loss = f"Held-out loss {losses} nats per answer token ({result.rows['test']} rows, {speed})."
    click.echo(f"{loss}\n{_validated(result)}Time: {shares}\nRun folder: {result.folder}")
    if not serious:
        command = command_line("gladstone", "export", "gguf", result.folder, "--quant", "q8_0", "--quant", "q4_k_m")
        click.echo(f"Next: {command}")
    else:
        _warn(serious)
        click.echo(f"`gladstone export` refuses {result.folder} because of this, unless --yes is given.")


def _resume(folder: Path, device: Wanted) -> str:
    chosen = () if device == "auto" else ("--device", device)
    return command_line("finetune", "run", "--resume", "--out", folder, *chosen)


def _validated(result: "RunResult") -> str:
    """The line on the validation loss if there is no test loss; '' otherwise."""
    if result.loss_after is not None or result.best_validation is None:
        return ""
    step, loss = result.best_validation
    return f"Lowest validation loss {loss:.3f} nats per answer token, after step {step:,}.\n"


def _warn(serious: "Sequence[RunWarning]") -> None:
    """Print the serious warnings, which stay at the end of the terminal."""
    for warning in serious:
        click.secho(f"WARNING: {warning.text}.", fg="red", bold=True)
    for advice in dict.fromkeys(warning.advice for warning in serious if warning.advice):
        click.echo(f"What may help: {advice}.")


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN…", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write the comparison into FOLDER.",
)
def compare(runs: tuple[Path, ...], out: Path | None) -> None:
    """Compare runs, finished or not: the settings that differ, losses, speed and memory.

    --out writes compare.html with overlaid curves, compare.md, compare.csv and compare.png.
    """
    from finetune.reports.compare.runs import read_runs
    from finetune.reports.compare.table import compare as compare_runs
    from finetune.reports.compare.text import render_terminal

    comparison = compare_runs(read_runs(runs))
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    colours = terminal and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns if terminal else None
    click.echo(render_terminal(comparison, width, colours=colours), nl=False)
    if out is not None:
        from finetune.reports.compare.page import FILES, write_comparison

        write_comparison(out, comparison)
        click.echo("\nWritten:\n" + "\n".join(f"  {out / name}" for name in FILES))


@main.group(cls=Group, invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes that come with Gladstone, with their base models, rows and memory."""
    if context.invoked_subcommand is None:
        from finetune.estimate.recipe_table import recipe_table

        click.echo(recipe_table())


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME, for example to start your own from it."""
    from finetune.config.load import recipe_text

    click.echo(recipe_text(name), nl=False)
