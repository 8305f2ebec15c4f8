"""The command `gladstone export` (also `python -m export`)."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gladstone.chat.messages import CHAT_CONTEXT_TOKENS
from gladstone.commands.group import Group
from gladstone.commands.renamed_option import RenamedOption
from gladstone.machine.packages import require_packages

if TYPE_CHECKING:
    from export.merge.plan import Onto
    from export.original.model import SourceOptions
    from export.pipeline import Export
    from export.proof.check import Check
    from export.quantise.size_estimate import Size

Command = Callable[..., Any]
NEEDED = ["torch", "transformers", "peft", "safetensors"]
FOLDER = click.Path(path_type=Path, file_okay=False)
SOURCE = click.argument("source", metavar="RUN|ADAPTER|MODEL", type=click.Path(path_type=Path))
BASE = click.option(
    "--base",
    metavar="FOLDER|HUB-ID",
    help="Base model of the adapter, if adapter_config.json names a wrong or missing one. A model folder without a "
    "tokenizer takes this model's tokenizer.",
)
CHAT_TEMPLATE = click.option(
    "--chat-template",
    "template",
    metavar="FILE|NAME",
    help="Chat template used in training, if the model has none or a different one: a Jinja file, or the name of a "
    "built-in template such as chatml.",
)
DATA = click.option(
    "--data",
    "rows",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Rows for the proof and the held-out loss, in any layout that finetune reads. A run has its own.",
)


def asks(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Add options that describe the source model; the command receives them as `source_options`."""

    def add(command: Command) -> Command:
        @wraps(command)
        def called(
            base: str | None = None, template: str | None = None, rows: Path | None = None, **others: Any
        ) -> None:
            from export.original.model import SourceOptions

            command(asked=SourceOptions(base, template, rows), **others)

        made: Command = called
        for option in reversed(options):
            made = option(made)
        return made

    return add


BASE_PRECISION_HELP = "Weights to merge into: the base in 16 bit, or the base in NF4 as QLoRA used it in training"
BASE_PRECISION = click.option(
    "--base-precision",
    cls=RenamedOption,
    earlier="--onto",
    type=click.Choice(["16bit", "nf4"]),
    default="16bit",
    show_default=True,
    help=f"{BASE_PRECISION_HELP}.",
)
BASE_PRECISION_OR_BEST = click.option(
    "--base-precision",
    cls=RenamedOption,
    earlier="--onto",
    type=click.Choice(["16bit", "nf4", "best"]),
    default="16bit",
    show_default=True,
    help=f"{BASE_PRECISION_HELP}; best measures both on held-out rows and takes the better.",
)

AUTHOR = click.option("--author", metavar="NAME", help="Author of the model, written to the files and the model card.")
LANGUAGES = click.option(
    "--language", "languages", multiple=True, metavar="CODE", help="Language of the answers, such as en. Repeatable."
)
LICENSE = click.option(
    "--license", "license_id", metavar="ID", help="Licence of the model, such as mit.  [default: the base's]"
)

YES = click.option(
    "--yes", "accepted", is_flag=True, help="Continue although the run reports that its training went wrong."
)


@click.group(cls=Group, resumes=True)
def main() -> None:
    """Turn an adapter into GGUF files, with a proof that they are the model you trained."""


@main.command()
@SOURCE
@asks(BASE, CHAT_TEMPLATE, DATA)
@click.option(
    "--quant", "quants", multiple=True, default=("q8_0",), show_default=True, help="File type to write. Repeatable."
)
@click.option("--with-base", is_flag=True, help="Also export the untouched base, for comparison.")
@click.option("--out", type=FOLDER, help="Output folder.  [default: gguf in the source folder]")
@BASE_PRECISION_OR_BEST
@click.option(
    "--imatrix",
    metavar="train|FILE",
    help="Compute an importance matrix from the training rows, or from rows or text in FILE; or use that in FILE.",
)
@click.option(
    "--imatrix-chunks",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Number of 512-token chunks for the importance matrix.",
)
@click.option(
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of the tensors whose names match PATTERN. Repeatable.",
)
@click.option(
    "--fit", metavar="SIZE", help="Write the best type that runs in this much memory, such as 4GB. Replaces --quant."
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=CHAT_CONTEXT_TOKENS,
    show_default=True,
    help="Context tokens assumed when memory is estimated.",
)
@click.option("--split", metavar="SIZE", help="Split files into parts of at most this size, such as 2GB.")
@AUTHOR
@LANGUAGES
@LICENSE
@click.option("--dry-run", is_flag=True, help="Show the size of each file without writing any.")
@YES
def gguf(  # noqa: PLR0913, PLR0917 - one parameter an option
    source: Path,
    asked: "SourceOptions",
    quants: tuple[str, ...],
    with_base: bool,
    out: Path | None,
    base_precision: 'Onto | Literal["best"]',
    imatrix: str | None,
    imatrix_chunks: int,
    overrides: tuple[str, ...],
    fit: str | None,
    context: int,
    split: str | None,
    author: str | None,
    license_id: str | None,
    languages: tuple[str, ...],
    *,
    dry_run: bool,
    accepted: bool,
) -> None:
    """Merge, convert, quantise and prove a model: a finished RUN, a PEFT ADAPTER or a MODEL folder."""
    require_packages("gladstone export", "export", NEEDED)
    if base_precision != "16bit":
        require_packages(f"gladstone export gguf --base-precision {base_precision}", "finetune", ["bitsandbytes"])
    from export.build import ExportOptions
    from export.pipeline import export_gguf, export_sizes
    from export.quantise.size_estimate import parse_bytes
    from export.quantise.types import parse_override
    from gladstone.commands.progress import Lines

    _check_fit(fit)
    split_bytes = parse_bytes(split, "--split") if split else None
    parsed = tuple(map(parse_override, overrides))
    wanted = ExportOptions(
        quants, with_base, base_precision, parsed, imatrix, imatrix_chunks, split_bytes, False, author, license_id,
        languages, accepted,
    )  # fmt: skip
    if fit or dry_run:
        sizes = export_sizes(source, asked, wanted, context, parse_bytes(fit, "--fit") if fit else None, Lines())
        _show_sizes(sizes, context)
        if dry_run:
            return
        wanted = replace(wanted, quants=(sizes[0].quant,))
    _show_export(export_gguf(source, asked, wanted, out, Lines()))


def _show_export(result: "Export") -> None:
    from export.convert.lora_gguf import LORA
    from gladstone.commands.shell import command_line
    from gladstone.machine.host import readable_bytes

    for name, checks in result.proof.items():
        click.echo(f"Proof of {name}:")
        _show(checks)
    for note in result.notes:
        click.echo(f"Note: {note}")
    for path in result.files.values():
        click.echo(f"{readable_bytes(path.stat().st_size):>9}  {path}")
    model, *others = result.files.values()
    loras = [word for path in others if path.name.endswith(LORA) for word in ("--lora", path)]
    click.echo(f"Next: {command_line('runtime', 'chat', model, *loras)}")


def _check_fit(fit: str | None) -> None:
    source = click.get_current_context().get_parameter_source("quants")
    if fit and source == click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--fit chooses the type: remove --quant.")


def _show_sizes(sizes: "list[Size]", context: int) -> None:
    from export.quantise.quantise import describe_fallbacks
    from gladstone.machine.host import readable_bytes

    click.echo(f"{'type':<10}{'file':>11}{f'with {context:,} tokens':>22}")
    for size in sizes:
        click.echo(f"{size.quant:<10}{readable_bytes(size.file_bytes):>11}{readable_bytes(size.memory_bytes):>22}")
    for size in sizes:
        if size.fallbacks:
            click.echo(f"Note: {describe_fallbacks(size.quant, size.fallbacks)}")


@main.command()
@SOURCE
@asks(BASE, CHAT_TEMPLATE, DATA)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    default=("q8_0",),
    show_default=True,
    help="Type of the base's file. Repeatable.",
)
@click.option("--out", type=FOLDER, help="Output folder.  [default: lora in the source folder]")
@AUTHOR
@LANGUAGES
@LICENSE
@YES
def lora(  # noqa: PLR0913, PLR0917 - one parameter an option
    source: Path,
    asked: "SourceOptions",
    quants: tuple[str, ...],
    out: Path | None,
    author: str | None,
    languages: tuple[str, ...],
    license_id: str | None,
    *,
    accepted: bool,
) -> None:
    """Write the adapter of a RUN or ADAPTER folder as its own GGUF, and the base as another.

    Several adapters can share one base: `runtime chat BASE.gguf --lora ADAPTER.gguf`.
    """
    require_packages("gladstone export", "export", NEEDED)
    from export.build import ExportOptions
    from export.pipeline import export_gguf
    from gladstone.commands.progress import Lines

    wanted = ExportOptions(quants, lora=True, author=author, license=license_id, languages=languages, accepted=accepted)
    _show_export(export_gguf(source, asked, wanted, out, Lines()))


@main.command()
@SOURCE
@asks(BASE, CHAT_TEMPLATE)
@click.option("--out", type=FOLDER, help="Output folder.  [default: merged in the source folder]")
@BASE_PRECISION
@click.option("--weight", type=float, default=1.0, show_default=True, help="Scale of the adapter; 1 is as trained.")
@click.option(
    "--adapter", "others", multiple=True, metavar="FOLDER=WEIGHT", help="Another adapter of the same base. Repeatable."
)
@click.option(
    "--shard-gb", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Largest file, in GB."
)
@YES
def merge(  # noqa: PLR0913, PLR0917 - one parameter an option
    source: Path,
    asked: "SourceOptions",
    out: Path | None,
    base_precision: "Onto",
    weight: float,
    others: tuple[str, ...],
    shard_gb: float,
    *,
    accepted: bool,
) -> None:
    """Merge a RUN or an ADAPTER into its base and write a model folder of safetensors.

    Memory holds one tensor at a time.
    """
    require_packages("gladstone export", "export", NEEDED)
    if base_precision == "nf4":
        require_packages("gladstone export merge --base-precision nf4", "finetune", ["bitsandbytes"])
    from export.safetensors_pipeline import MergeOptions, merge_run
    from gladstone.commands.progress import Lines
    from gladstone.machine.host import readable_bytes

    options = MergeOptions(
        source, base_precision, weight, tuple(map(_weighted, others)), int(shard_gb * 1e9), accepted, asked
    )  # fmt: skip
    for path in merge_run(options, out, Lines()):
        click.echo(f"{readable_bytes(path.stat().st_size):>9}  {path}")


def _weighted(text: str) -> tuple[Path, float]:
    folder, separator, weight = text.rpartition("=")
    try:
        return Path(folder if separator else text), float(weight) if separator else 1.0
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected FOLDER=WEIGHT, as adapters/other=0.5.") from None


@main.command()
@click.argument("folder", type=FOLDER)
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private if it is created.")
@click.option("--dry-run", is_flag=True, help="List the files without uploading them.")
@YES
def push(folder: Path, repo: str, *, private: bool, dry_run: bool, accepted: bool) -> None:
    """Upload the FOLDER of a finished export to the Hub.

    The same command resumes an interrupted upload. This is the only command that sends anything: the files it lists.
    """
    require_packages("gladstone export push", "export", ["huggingface_hub"])
    from export.publish.push import plan_upload, upload
    from gladstone.commands.progress import Lines
    from gladstone.machine.host import readable_bytes

    planned = plan_upload(folder, repo, accepted=accepted or dry_run)
    for name, size in planned.files.items():
        click.echo(f"{readable_bytes(size):>9}  {name}")
    click.echo(f"{readable_bytes(sum(planned.files.values())):>9}  in {len(planned.files)} files to {repo}")
    if not dry_run:
        click.echo(upload(planned, private=private, progress=Lines()))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="The run, adapter or model folder to compare with.",
)
@asks(BASE, CHAT_TEMPLATE, DATA)
@click.option("--lora", "loras", multiple=True, metavar="FILE[=SCALE]", help="Adapter to apply to FILE. Repeatable.")
@BASE_PRECISION
def verify(
    file: Path,
    source: Path,
    asked: "SourceOptions",
    loras: tuple[str, ...],
    base_precision: "Onto",
) -> None:
    """Prove that a GGUF computes what a run, an adapter on its base, or a model folder computes."""
    require_packages("gladstone export", "export", NEEDED)
    from export.pipeline import verify_against
    from gladstone.commands.progress import Lines
    from gladstone.errors import ArtifactError
    from gladstone.llamacpp.lora import parse_lora

    checks = verify_against(file, source, asked, base_precision, tuple(map(parse_lora, loras)), Lines())
    _show(checks)
    if not all(check.passed for check in checks):
        raise ArtifactError(f"{file}: not the model of {source}.")


@main.command()
@click.option(
    "--from",
    "archive",
    type=click.Path(path_type=Path),
    help="Source archive of llama-cpp-python, for a machine without a network.",
)
def setup(archive: Path | None) -> None:
    """Download llama.cpp's converter into the cache. Done once; the other commands then need no network."""
    from export.convert.llamacpp_converter import install_archive
    from gladstone.commands.progress import Lines

    click.echo(f"Converter ready: {install_archive(archive, Lines())}")


def _show(checks: "list[Check]") -> None:
    for line in (line for check in checks for line in check.describe().splitlines()):
        click.echo(f"  {line}")
