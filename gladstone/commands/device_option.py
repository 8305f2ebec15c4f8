"""The option --device of commands that compute with torch."""

import click

from gladstone.machine.gpu import WANTED

device_option = click.option(
    "--device",
    type=click.Choice(WANTED),
    default="auto",
    help="Compute on a GPU (cuda) or on the CPU; auto: on a GPU if there is one, and an error if it cannot be used.",
    show_default=True,
)
