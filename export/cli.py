"""The command `gladstone export` (also `python -m export`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gladstone.command import Group, require_packages

if TYPE_CHECKING:
    from export.merge import Onto
    from export.verify import Point

NEEDED = ["torch", "transformers", "peft", "safetensors"]
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(cls=Group, resumes=True)
def main() -> None:
    """Turn an adapter into GGUF files that are proven to be the model you trained."""


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--quant", "quants", multiple=True, default=("q8_0",), show_default=True, help="Type to write; repeats.")
@click.option("--with-base", is_flag=True, help="Export the untouched base the same way, for a fair comparison.")
@click.option("--out", type=FOLDER, help="Folder for the files.  [default: RUN/gguf]")
def gguf(run: Path, quants: tuple[str, ...], with_base: bool, out: Path | None) -> None:
    """Merge, convert, quantise and prove the model of a finished RUN folder."""
    require_packages("gladstone export", "export", NEEDED)
    from export.pipeline import export_gguf
    from gladstone.host import readable_bytes
    from gladstone.progress import Lines

    result = export_gguf(run, quants, out, with_base, Lines())
    for name, points in result.proof.items():
        click.echo(f"Proof of {name}:")
        _show(points)
    for path in result.files.values():
        click.echo(f"{readable_bytes(path.stat().st_size):>9}  {path}")
    click.echo(f"Next: runtime chat {next(iter(result.files.values()))}")


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for the model.  [default: RUN/merged]")
@click.option(
    "--onto",
    type=click.Choice(["16bit", "nf4"]),
    default="16bit",
    show_default=True,
    help="Merge onto the base as it is, or onto its weights as QLoRA held them in training.",
)
@click.option("--weight", type=float, default=1.0, show_default=True, help="Strength of the run's adapter.")
@click.option(
    "--adapter", "others", multiple=True, metavar="FOLDER=WEIGHT", help="A further adapter of the same base; repeats."
)
@click.option("--shard-gb", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Largest file.")
def merge(  # noqa: PLR0913, PLR0917 - one parameter an option
    run: Path, out: Path | None, onto: "Onto", weight: float, others: tuple[str, ...], shard_gb: float
) -> None:
    """Merge a finished RUN into an ordinary folder of safetensors, for what reads no GGUF.

    No more than a tensor at a time is in memory.
    """
    require_packages("gladstone export", "export", NEEDED)
    if onto == "nf4":
        require_packages("gladstone export merge --onto nf4", "finetune", ["bitsandbytes"])
    from export.merged import Merging, merge_run
    from gladstone.host import readable_bytes
    from gladstone.progress import Lines

    out = out or run / "merged"
    merging = Merging(run, onto, weight, tuple(map(_weighted, others)), int(shard_gb * 1e9))
    for path in merge_run(merging, out, Lines()):
        click.echo(f"{readable_bytes(path.stat().st_size):>9}  {path}")


def _weighted(text: str) -> tuple[Path, float]:
    folder, separator, weight = text.rpartition("=")
    try:
        return Path(folder if separator else text), float(weight) if separator else 1.0
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected FOLDER=WEIGHT, as adapters/other=0.5.") from None


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", "run", type=FOLDER, required=True, help="The run folder that trained the model.")
def verify(file: Path, run: Path) -> None:
    """Prove that an F16 GGUF is the model that a run trained."""
    require_packages("gladstone export", "export", NEEDED)
    from export.pipeline import verify_against_run
    from gladstone.errors import ArtifactError
    from gladstone.progress import Lines

    points = verify_against_run(file, run, Lines())
    _show(points)
    if not all(point.passed for point in points):
        raise ArtifactError(f"{file}: not the model that {run} trained.")


@main.command()
@click.option("--from", "archive", type=click.Path(path_type=Path), help="The archive, brought by hand.")
def setup(archive: Path | None) -> None:
    """Fetch llama.cpp's converter into the cache (once; other commands then need no network)."""
    from export.converter import install_archive
    from gladstone.progress import Lines

    click.echo(f"Converter ready: {install_archive(archive, Lines())}")


def _show(points: "list[Point]") -> None:
    for point in points:
        click.echo(f"  {'proven' if point.passed else 'FAILED':7} {point.name}: {point.detail}")
