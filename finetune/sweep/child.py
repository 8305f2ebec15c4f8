"""A trial in a process of its own: its peak memory is its own, and a crash ends it alone."""

from pathlib import Path
from typing import Any

from finetune.sweep.trial import make_trial
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.commands.progress import Lines
from gladstone.process.child import ChildOptions, describe_exit, start_child
from gladstone.process.child_main import save_and_stop, serve


def run_child(folder: Path, number: int) -> str:
    """Make a trial in a child; returns how the child ended, in words.

    Raises KeyboardInterrupt if the user stopped it, once it is saved.
    """
    options = ChildOptions(inherit_log=True, saves_on_interrupt=True)
    with start_child("finetune.sweep.child", {"folder": str(folder), "number": number}, options) as child:
        code = child.wait()
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return f"its process ended with {describe_exit(code)}"


def make(job: dict[str, Any]) -> None:
    """Make the trial that the job names. Exits with EXIT_INTERRUPTED once it is saved if the user stopped it."""
    try:
        make_trial(Path(job["folder"]), job["number"], Lines())
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    serve(make, save_and_stop)
