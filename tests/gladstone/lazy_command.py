"""A command that the tests load when they call it."""

import click


@click.command()
def main() -> None:
    """Say that it is loaded."""
    click.echo("loaded")
