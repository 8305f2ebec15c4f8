"""The command `finetune sweep`."""

from pathlib import Path

import click

from gladstone.machine.packages import require_packages


class SweepCommand(click.Command):
    """A command whose help ends with the fields of a SWEEP.yaml, in the words that its sections have for them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from finetune.config.field_help import field_help
        from finetune.sweep.config import SweepSection

        with formatter.section("Fields of SWEEP.yaml"):
            formatter.write_dl(field_help(SweepSection))


@click.command(cls=SweepCommand)
@click.argument("sweep_file", metavar="SWEEP.yaml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: sweeps/SWEEP]")
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Spread the trials over a Ray cluster, whose machines share the folder: HOST:PORT, 'auto' for one that runs "
    "here, or, at the end of the line, nothing for this machine's own processors.",
)
@click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="With --ray: of each trial.  [default: 1]")
@click.option(
    "--gpus", type=click.FloatRange(min=0), help="With --ray: of each trial.  [default: 1 where there are any]"
)
def sweep(sweep_file: Path, out: Path | None, address: str | None, cpus: float | None, gpus: float | None) -> None:
    """Try settings of a recipe in many runs, and compare them in a table.

    The same command again finishes a sweep that was stopped or killed.
    """
    if address is None and (cpus is not None or gpus is not None):
        raise click.UsageError("--cpus and --gpus are of the trials of --ray, which is not given.")
    from finetune.sweep.ray_trials import Cluster, check_address

    if address is not None:
        check_address(address)
        require_packages("finetune sweep --ray", "ray", ["ray"])
    require_packages("finetune sweep", "finetune", ["torch", "peft", "optuna"])
    from finetune.sweep.run import Place, run_sweep
    from finetune.sweep.table import ending

    cluster = Cluster(address, cpus or 1, gpus) if address is not None else None
    folder = out or Path("sweeps") / sweep_file.stem
    table = run_sweep(sweep_file, Place(folder, cluster), lambda line: click.echo(line, err=True))
    click.echo(ending(table, folder))
