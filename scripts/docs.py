"""Write docs/commands.md, the help page of every command; with --check, fail if it is out of date."""

import argparse
import sys
from pathlib import Path

import click

import bench.cli
import export.cli
import finetune.cli
import gladstone.cli
import runtime.cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
PROGRAMS = {
    "gladstone": gladstone.cli.main,
    "finetune": finetune.cli.main,
    "gladstone export": export.cli.main,
    "runtime": runtime.cli.main,
    "bench": bench.cli.main,
}


def main() -> int:
    """0 if the page is written or up to date, 1 if --check finds it stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    page = render()
    if not parser.parse_args().check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print("docs/commands.md is out of date: run `make docs`.", file=sys.stderr)
    return 1


def render() -> str:
    """The whole page."""
    parts = ["# Commands\n\nWritten by `make docs`.\n"]
    for name, group in PROGRAMS.items():
        parts += _sections(name, group, only="demo" if name == "gladstone" else None)
    return "\n".join(parts)


def _sections(name: str, command: click.Command, only: str | None = None) -> list[str]:
    """The page of a command and of all commands below it, or of one of them."""
    parts = [_section(name, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in [only] if only else command.list_commands(context):
            below = command.get_command(context, child)
            assert below is not None
            parts += _sections(f"{name} {child}", below)
    return parts


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
