"""`python -m export`, since `export` is a word of the shell."""

from export.cli import main

main(prog_name="python -m export")
