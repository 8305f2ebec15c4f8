"""The command `gladstone export` (also `python -m export`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gladstone.command import Group, require_packages

if TYPE_CHECKING:
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
