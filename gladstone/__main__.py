"""`python -m gladstone`."""

from gladstone.cli import main

main(prog_name="python -m gladstone")
