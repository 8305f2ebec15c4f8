"""The command `finetune sweep`."""

from pathlib import Path

import click

from gladstone.commands.device_option import device_option
from gladstone.machine.gpu import Wanted
from gladstone.machine.packages import require_packages


class SweepCommand(click.Command):
    """A command whose help ends with the fields of SWEEP.yaml and their descriptions."""

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
    help="Distribute the trials over a Ray cluster whose machines share the folder: HOST:PORT, or 'auto' for a cluster "
    "that runs on this machine. Without ADDRESS, at the end of the line: use the processors of this machine.",
)
@click.option(
    "--cpus",
    type=click.FloatRange(min=0, min_open=True),
    help="With --ray: processors, and so threads, per trial.  [default: 1]",
)
@click.option(
    "--gpus", type=click.FloatRange(min=0), help="With --ray: GPUs per trial.  [default: 1 if the cluster has any]"
)
@device_option
def sweep(  # noqa: PLR0913, PLR0917 - one parameter an option
    sweep_file: Path, out: Path | None, address: str | None, cpus: float | None, gpus: float | None, device: Wanted
) -> None:
    """Train a recipe with many combinations of settings and compare the runs in a table.

    Repeat the command to continue a sweep that was stopped or killed.
    """
    if address is None and (cpus is not None or gpus is not None):
        raise click.UsageError("--cpus and --gpus need --ray.")
    from finetune.sweep.ray_trials import Cluster, check_address

    if address is not None:
        check_address(address)
        require_packages("finetune sweep --ray", "ray", ["ray"])
    require_packages("finetune sweep", "finetune", ["torch", "peft", "optuna"])
    from finetune.sweep.run import run_sweep
    from finetune.sweep.table import ending

    cluster = Cluster(address, cpus or 1, gpus, device) if address is not None else None
    folder = out or Path("sweeps") / sweep_file.stem
    table = run_sweep(sweep_file, folder, lambda line: click.echo(line, err=True), cluster, device)
    click.echo(ending(table, folder))
