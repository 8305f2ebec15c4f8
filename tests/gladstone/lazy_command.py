"""A command that the tests load lazily."""

import click


@click.command()
def main() -> None:
    """Say that it is loaded."""
    click.echo("loaded")
