"""Child processes of the export: their crash is a message, never ours."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gladstone.commands.progress import Progress, Silent
from gladstone.errors import ArtifactError, GladstoneError, ToolError, UnsupportedError

USER_ERROR, SHOWN_LINES = 3, 20
# tensor after tensor is read into fresh memory: in pages of 4 KB that takes a quarter of a large conversion's time
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
LEAST_ROOM = 1 << 20  # bytes; with fewer left a child has failed for want of them


def run_child(
    module: str, job: dict[str, Any], what: str, python_path: Sequence[Path] = (), progress: Progress | None = None
) -> Any:
    """Run `python -m MODULE` with the job on stdin until it ends; it ends with us. Returns what it reports, if it does.

    A child reports a line of JSON on stdout: `{"fraction": 0.3}` is shown, `{"result": …}` is returned. Raises
    UnsupportedError if it exits with 3, with the `{"error": …}` that it reported or else its last line, and ToolError
    with its last lines if it fails.
    """
    paths = [str(path) for path in python_path] + [path for path in (os.environ.get("PYTHONPATH"),) if path]
    environment = LARGE_PAGES | os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=environment,
        ) as child,
    ):
        try:
            reported = _talk(child, job, progress or Silent())
        except BaseException:  # Ctrl-C above all: no child may go on writing
            child.kill()
            child.wait()  # Popen itself waits no longer than a quarter of a second after Ctrl-C
            raise
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    if child.returncode == USER_ERROR and (lines or "error" in reported):
        raise UnsupportedError(str(reported["error"]) if "error" in reported else lines[-1])
    if child.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if child.returncode:
        _check_room(job)
        tail = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        raise ToolError(f"{what} failed (exit code {child.returncode}). Its last lines:\n{tail}")
    return reported.get("result")


def _check_room(job: dict[str, Any]) -> None:
    """Raises ArtifactError if there is no room left where a child wrote: it says so in words of its own, or aborts."""
    target = Path(str(job.get("out", ".")))
    folder = target if target.is_dir() else target.parent
    if "out" in job and shutil.disk_usage(folder).free < LEAST_ROOM:
        raise ArtifactError(f"{folder}: cannot be written: No space left on device. Free some, and call it again.")


def serve(work: Callable[[dict[str, Any]], Any]) -> None:
    """What a child's `main` does: take the job from stdin, do the work, report what it returns.

    An error that is meant for the user is reported like a result, with the exit code that `run_child` knows it by: on
    stderr a library's progress bar may come behind it.
    """
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = work(job)
    except GladstoneError as error:
        print(error, file=sys.stderr)
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(USER_ERROR)
    if result is not None:
        print(json.dumps({"result": result}))


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its child: what that went on writing would lie beside the next call's."""
    os.read(0, 1)  # returns when the other end is closed: nothing more is ever sent
    os._exit(1)


def report_share(fraction: float) -> None:
    """Of a child: how far its work is."""
    print(json.dumps({"fraction": fraction}), flush=True)


def _talk(child: subprocess.Popen[str], job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Hand over the job, show the progress, and wait for the end; returns `result` and `error` as far as reported."""
    reported: dict[str, Any] = {}
    assert child.stdin is not None and child.stdout is not None  # noqa: PT018, S101 - both are pipes
    with suppress(BrokenPipeError):  # a child that died says why on its stderr
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()  # and left open: where it ends, so do we
    for line in child.stdout:
        said = _report(line)
        if "fraction" in said:
            progress.update(float(said["fraction"]))
        reported |= {name: said[name] for name in ("result", "error") if name in said}
    child.wait()
    with suppress(BrokenPipeError):
        child.stdin.close()
    return reported


def _report(line: str) -> dict[str, Any]:
    """A line of stdout, if it is a report; libraries print there too."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
