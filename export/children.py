"""Child processes of the export: their crash is a message, never ours."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gladstone.errors import ToolError, UnsupportedError

USER_ERROR, SHOWN_LINES = 3, 20


def run_child(module: str, job: dict[str, Any], what: str, python_path: Sequence[Path] = ()) -> None:
    """Run `python -m MODULE` with the job on stdin until it ends; it ends with us.

    Raises UnsupportedError with the child's message if it exits with 3, ToolError with its last lines if it fails.
    """
    paths = [str(path) for path in python_path] + [path for path in (os.environ.get("PYTHONPATH"),) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} if paths else None
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as child:
        try:
            _, errors = child.communicate(json.dumps(job))
        except BaseException:  # Ctrl-C above all: no child may go on writing
            child.kill()
            child.wait()  # Popen itself waits no longer than a quarter of a second after Ctrl-C
            raise
    lines = errors.strip().splitlines()
    if child.returncode == USER_ERROR and lines:
        raise UnsupportedError(lines[-1])
    if child.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if child.returncode:
        tail = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        raise ToolError(f"{what} failed (exit code {child.returncode}). Its last lines:\n{tail}")
