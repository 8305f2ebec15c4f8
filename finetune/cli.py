"""The command `finetune`."""

from pathlib import Path

import click

from gladstone.command import Group, require_packages

LAZY = {
    "data": ("finetune.data.commands:data", "Check, clean, divide and compare data files."),
    "sweep": ("finetune.sweep.commands:sweep", "Try settings of a recipe in many runs, and compare them in a table."),
}


@click.group(cls=Group, resumes=True, lazy=LAZY)
def main() -> None:
    """Fine-tune a model on your rows with QLoRA: rows in, adapter out."""


class RecipeCommand(click.Command):
    """A command whose help ends with the fields of a recipe, in the words that the recipe's sections have for them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from finetune.recipe import field_help

        with formatter.section("Fields of a recipe, for --set"):
            formatter.write_dl(field_help())


@main.command(cls=RecipeCommand)
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Train on this file in place of the recipe's rows.")
@click.option("--format", "format_name", help="Row format of --data.  [default: auto]")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be read, and count them.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/NAME]")
def run(  # noqa: PLR0913 - one parameter an option
    recipe: str | None,
    data: Path | None,
    format_name: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    *,
    skip_bad: bool,
) -> None:
    """Train RECIPE: a name from `finetune recipes` or a YAML file (default: the demo's)."""
    from finetune.recipe import load_recipe
    from gladstone.progress import Lines

    if format_name is not None and data is None:
        raise click.UsageError("--format describes --data, which is not given.")
    source = (str(data), format_name or "auto") if data is not None else None
    loaded = load_recipe(recipe, [*overrides, *(["data.skip_bad=true"] if skip_bad else [])], source)
    require_packages("finetune", "finetune", ["torch", "unsloth", "trl", "peft", "bitsandbytes", "datasets"])
    from finetune.run import run as run_recipe

    result = run_recipe(loaded, out or Path("runs") / loaded.name, Lines())
    click.echo(
        f"Held-out loss {result.loss_before:.3f} → {result.loss_after:.3f} nats per answer token "
        f"({result.rows['test']} rows, {result.steps} steps, {result.tokens_per_s:.0f} tokens/s).\n"
        f"Run folder: {result.folder}\n"
        f"Next: gladstone export gguf {result.folder} --quant q8_0 --quant q4_k_m"
    )


@main.group(cls=Group, invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes that come with Gladstone: base model, rows, and the memory that training takes."""
    if context.invoked_subcommand is None:
        from finetune.memory import recipe_table

        click.echo(recipe_table())


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME, to read or to start your own from."""
    from finetune.recipe import recipe_text

    click.echo(recipe_text(name), nl=False)
