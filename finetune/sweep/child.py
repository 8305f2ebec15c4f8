"""Runs a trial in its own process: peak memory is measured per trial, and a crash ends that trial only."""

from pathlib import Path
from typing import Any

from finetune.sweep.trial import run_trial
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.commands.progress import Lines
from gladstone.machine.gpu import Wanted
from gladstone.process.child import ChildOptions, describe_exit, start_child
from gladstone.process.child_main import save_and_stop, serve


def run_child(folder: Path, number: int, device: Wanted = "auto") -> str:
    """Run a trial on this device in a child process and return how the process ended, in words.

    Raises KeyboardInterrupt if the user stopped it, after it has saved a checkpoint.
    """
    options = ChildOptions(inherit_log=True, saves_on_interrupt=True)
    with start_child(
        "finetune.sweep.child", {"folder": str(folder), "number": number, "device": device}, options
    ) as child:
        code = child.wait()
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return f"its process ended with {describe_exit(code)}"


def make(job: dict[str, Any]) -> None:
    """Run the trial that the job names. If the user stops it, it saves a checkpoint and exits with EXIT_INTERRUPTED."""
    try:
        run_trial(Path(job["folder"]), job["number"], Lines(), job["device"])
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    serve(make, save_and_stop)
