"""A trial in a process of its own: its peak memory is its own, and a crash ends it alone.

Started as `python -m finetune.sweep.child FOLDER NUMBER` with a pipe on stdin that ends when its parent dies.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import finetune
from finetune.sweep.trial import make_trial
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.commands.progress import Lines


def run_child(folder: Path, number: int) -> str:
    """Make a trial in a child; returns how the child ended, in words.

    Raises KeyboardInterrupt if the user stopped it, once it is saved.
    """
    root = str(Path(finetune.__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "finetune.sweep.child", str(folder), str(number)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once
    ) as child:
        code = _wait(child)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        cause = ": did memory run out?" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{cause}"
    return f"its process ended with exit code {code}"


def _wait(child: "subprocess.Popen[bytes]") -> int:
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        try:
            child.wait()  # while it saves
        except KeyboardInterrupt:
            child.kill()
            child.wait()
        raise


def _end_with_parent() -> None:
    """SIGTERM to ourselves when stdin ends: the run saves its checkpoint and stops."""

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Make the trial that the arguments name."""
    folder, number = sys.argv[1:]
    _end_with_parent()
    try:
        make_trial(Path(folder), int(number), Lines())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
