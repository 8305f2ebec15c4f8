"""The commands under `finetune data`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.commands.group import Group
from gladstone.commands.row_options import parse_columns, row_options

if TYPE_CHECKING:
    from finetune.reports.data_preview import Previewer
    from finetune.tokens.refusals import RowCheck

FORMAT = click.option("--format", "format_name", default="auto", show_default=True, help="Row format.")
FILE = click.Path(path_type=Path)
SIMILARITY = click.FloatRange(0.5, 1)
RECIPE_HELP = "Recipe whose base, template and limits apply.  [default: smollm2-135m with PATH, else the demo's]"

ASKED_HELP = "Also check the rows against the special tokens and chat template of this recipe's base."
SKIP_HELP = "Leave out and count rows that cannot be read or that the base refuses."


@click.group(cls=Group)
def data() -> None:
    """Check, clean, split and compare data files."""


@data.command()
@click.argument("path", type=FILE)
@FORMAT
@row_options
@click.option("--recipe", help=ASKED_HELP)
@click.option("--skip-bad", is_flag=True, help="Report bad rows, but exit with 0.")
def check(  # noqa: PLR0913, PLR0917 - one parameter an option
    path: Path,
    format_name: str,
    columns: tuple[str, ...],
    encoding: str | None,
    sheet: str | None,
    recipe: str | None,
    *,
    skip_bad: bool,
) -> None:
    """Read every row of PATH: its format, how many rows are good, and what is wrong with the others."""
    from finetune.reports.data_check import check_rows, describe
    from gladstone.rows import ReadOptions

    checked = check_rows(
        path, format_name, parse_columns(columns) or None, ReadOptions(encoding, sheet), _asked(recipe, path)
    )
    click.echo(describe(checked))
    if skip_bad and (checked.problems.count or checked.problems.unread):
        click.echo(checked.problems.message("left out"), err=True)
    else:
        checked.problems.check(f"{path}, read as {checked.layout.name!r}")


@data.command()
@click.argument("paths", type=FILE, nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the sets.")
@FORMAT
@click.option(
    "--held-out", type=FILE, multiple=True, help="Leave out rows that this benchmark file contains. Repeatable."
)
@click.option("--recipe", help=ASKED_HELP)
@click.option("--skip-bad", is_flag=True, help=SKIP_HELP)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of a recipe's data section, for example cleaning.max_chars=4000 or test=200. Repeatable.",
)
def prepare(  # noqa: PLR0913, PLR0917 - one parameter an option
    paths: tuple[Path, ...],
    out: Path,
    format_name: str,
    held_out: tuple[Path, ...],
    recipe: str | None,
    overrides: tuple[str, ...],
    *,
    skip_bad: bool,
) -> None:
    """Clean the rows of PATHS, leave out duplicates, and split them into training, validation and test set.

    The sets are JSON Lines with OpenAI's `messages`, which other trainers read too. dropped.jsonl holds every row that
    is in no set, with the reason; changed.jsonl holds every cleaned row before and after. Steps that would change the
    meaning of a text are only reported, with the option that enables them.
    """
    from finetune.config.data import DataSection
    from finetune.data.prepare import describe
    from finetune.data.prepare import prepare as prepare_rows
    from gladstone.commands.progress import Lines
    from gladstone.config import apply_overrides, build_config

    values: dict[str, Any] = {
        "sources": [{"path": str(path), "format": format_name} for path in paths],
        "held_out": [{"path": str(path)} for path in held_out],
        "skip_bad": skip_bad,
    }
    changes = [
        override.removeprefix("data.") for override in overrides
    ]  # users may write the names as in a recipe or in a message
    section = build_config(DataSection, apply_overrides(values, changes), "finetune data prepare")
    ask = None if recipe is None else lambda: _base_of(recipe, paths[0]).labeller.check
    click.echo(describe(prepare_rows(section, out, Lines(), ask), out))


@data.command()
@click.argument("path", type=FILE, required=False)
@FORMAT
@click.option("--recipe", help=RECIPE_HELP)
@click.option("--rows", type=click.IntRange(1), default=3, show_default=True, help="Show this many rows.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
def preview(path: Path | None, format_name: str, recipe: str | None, *, rows: int, overrides: tuple[str, ...]) -> None:
    """Show rows as the trainer sees them: scored text in green, the rest dim, token counts, and truncation.

    PATH replaces the rows of the recipe. Without a terminal, scored text is marked by ⟦ and ⟧.
    """
    import sys

    from finetune.config.load import load_recipe
    from finetune.reports.data_preview import Previewer, describe, summary
    from gladstone.commands.progress import Lines
    from gladstone.machine.packages import require_packages

    source = (str(path), format_name) if path is not None else None
    loaded = load_recipe(recipe, list(overrides), source)
    require_packages("finetune data preview", "finetune", ["transformers"])
    previewer = Previewer(loaded, Lines())
    colour = sys.stdout.isatty()
    for number, each in enumerate(previewer.previews(rows), 1):
        click.echo(describe(each, number, previewer.tokenizer, colour=colour))
    click.echo(f"\n{summary(previewer)}")


@data.command()
@click.argument("path", type=FILE, required=False)
@FORMAT
@click.option("--recipe", help=RECIPE_HELP)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the report.")
@click.option(
    "--loss",
    type=click.IntRange(0),
    default=0,
    help="Measure the base model's loss on this many rows, to find outliers.",
)
@click.option("--skip-bad", is_flag=True, help=SKIP_HELP)
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
def report(  # noqa: PLR0913 - one parameter an option
    path: Path | None,
    format_name: str,
    recipe: str | None,
    out: Path,
    *,
    loss: int,
    skip_bad: bool,
    overrides: tuple[str, ...],
) -> None:
    """Prepare the rows of PATH, or of the recipe, and write the sets with report.html and report.json."""
    from finetune.config.load import load_recipe
    from finetune.data.prepare import describe
    from finetune.reports.data_report import make_report
    from gladstone.commands.progress import Lines
    from gladstone.machine.packages import require_packages

    source = (str(path), format_name) if path is not None else None
    loaded = load_recipe(recipe, [*overrides, *(["data.skip_bad=true"] if skip_bad else [])], source)
    require_packages("finetune data report", "finetune", ["transformers", "py3langid"])
    made = make_report(loaded, out, loss, Lines())
    click.echo(f"{describe(made.summary, out)}\n\n{out / 'report.html'}\n{out / 'report.json'}")


@data.command()
@click.argument("train", type=FILE)
@click.option("--against", type=FILE, required=True, help="The test or benchmark file.")
@FORMAT
@click.option("--against-format", default="auto", show_default=True, help="Row format of the test file.")
@click.option(
    "--similarity", type=SIMILARITY, default=0.6, show_default=True, help="Lowest score that counts as a leak."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all leaks to this JSON Lines file.")
def leaks(  # noqa: PLR0913 - one parameter an option
    train: Path, against: Path, format_name: str, against_format: str, *, similarity: float, out: Path | None
) -> None:
    """Find the rows of TRAIN that also occur in a test file. Exits with 1 if there are any.

    A row is a leak if it asks the same as a test row: in the same words, in another order, with synonyms or typing
    errors, or inside a longer text; or if it has the answer of a test row and asks about the same subject. Each leak
    is shown with its score from 0 to 1 and the differences. The same question about another name or number is not a
    leak.
    """
    from finetune.data.leaks.leaks import compare

    compared = compare((train, format_name), (against, against_format), similarity, out)
    click.echo(compared.summary())
    compared.check()


def _base_of(recipe: str, path: Path) -> "Previewer":
    """What reads rows as the base of a recipe does; `path` stands in for the recipe's own rows."""
    from finetune.config.load import load_recipe
    from finetune.reports.data_preview import Previewer
    from gladstone.commands.progress import Lines
    from gladstone.machine.packages import require_packages

    loaded = load_recipe(recipe, [], (str(path), "auto"))
    require_packages("finetune data", "finetune", ["transformers"])
    return Previewer(loaded, Lines())


def _asked(recipe: str | None, path: Path) -> "tuple[str, RowCheck] | None":
    if recipe is None:
        return None
    base = _base_of(recipe, path)
    return base.base.name, base.labeller.check
