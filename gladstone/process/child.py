"""The parent's side of a child process: start it with a job, read its events, end it whatever happens.

Work that may crash, hang or take much memory runs as `python -m MODULE`. The job is one JSON line on the child's stdin,
which stays open: when it closes, the parent has died and the child exits. Events are JSON objects on the child's
stdout, one per line; all its other output is its log. `gladstone.process.child_main` is the child's side.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import gladstone
from gladstone import errors
from gladstone.commands.progress import Progress, Silent
from gladstone.errors import ArtifactError, GladstoneError, ToolError

LOG_LINES, LOG_BYTES = 20, 1 << 20  # of the end of a log: lines shown, bytes read
POLL_S = 0.05  # between two checks of the limits
# tensors are read into fresh memory: allocating it in pages of 4 KB takes a quarter of a large conversion's time
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
LEAST_ROOM_BYTES = 1 << 20  # with less free disk space, a failure is attributed to the disk


@dataclass(frozen=True)
class ChildOptions:
    """How a child is started, and its limits.

    `environment` overrides this process's variables. The child is killed after `time_s` seconds of elapsed time, or
    when its resident memory exceeds `memory_bytes`. With `inherit_log` its log goes to this process's stderr instead of
    a file. With `saves_on_interrupt` Ctrl-C is passed on and the child may save; a second Ctrl-C kills it.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    python_path: Sequence[Path] = ()
    time_s: float | None = None
    memory_bytes: int | None = None
    inherit_log: bool = False
    saves_on_interrupt: bool = False


class Child:
    """A running child process, started by `start_child`."""

    def __init__(self, process: "subprocess.Popen[str]", log: IO[bytes], options: ChildOptions) -> None:
        self._process, self._log = process, log
        self._ended = threading.Event()
        self.exceeded: Literal["time", "memory"] | None = None
        self._watcher: threading.Thread | None = None
        if options.time_s is not None or options.memory_bytes is not None:
            self._watcher = threading.Thread(target=self._watch, args=(options,), daemon=True)
            self._watcher.start()

    def send_job(self, job: Mapping[str, Any]) -> None:
        """Write the job to the child's stdin, which stays open."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with suppress(BrokenPipeError):  # a child that died says why in its log
            self._process.stdin.write(json.dumps(job, default=str) + "\n")
            self._process.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the child's events until its stdout ends; other lines are skipped.

        Raises the GladstoneError that the child reports.
        """
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        for line in self._process.stdout:
            event = _event(line)
            if "error" in event:
                raise _reported_error(event)
            if event:
                yield event

    def wait(self) -> int:
        """Wait for the child and return its exit code, negative for a signal. Raises KeyboardInterrupt for SIGINT."""
        code = self._process.wait()
        self._stop_watching()
        if code == -signal.SIGINT:
            raise KeyboardInterrupt
        return code

    def log(self) -> str:
        """The end of an exited child's log; '' if it went to this process's stderr."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_BYTES))
        return self._log.read().decode("utf-8", "replace")

    def check(self, what: str) -> None:
        """Wait for the child. Raises ToolError, with the end of its log, if the exit code is not 0."""
        code = self.wait()
        if code:
            lines = self.log().strip().splitlines()[-LOG_LINES:]
            last = "Its last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else "It printed nothing."
            raise ToolError(f"{what} failed ({describe_exit(code)}). {last}")

    def interrupt(self) -> None:
        """Pass Ctrl-C on and wait while the child saves its work."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def end(self) -> None:
        """Kill the child if it runs, and close its pipes."""
        self._process.kill()
        self._process.wait()
        self._stop_watching()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was still buffered for a dead child
                    pipe.close()

    def _watch(self, options: ChildOptions) -> None:
        """Kill the child at the first limit that it exceeds."""
        import psutil

        end_s = None if options.time_s is None else time.monotonic() + options.time_s
        with suppress(psutil.Error):  # it may have ended
            process = psutil.Process(self._process.pid)
            while not self._ended.wait(POLL_S) and self._process.poll() is None:
                if end_s is not None and time.monotonic() > end_s:
                    self.exceeded = "time"
                elif options.memory_bytes is not None and process.memory_info().rss > options.memory_bytes:
                    self.exceeded = "memory"
                if self.exceeded:
                    self._process.kill()
                    return

    def _stop_watching(self) -> None:
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()


@contextmanager
def start_child(module: str, job: Mapping[str, Any], options: ChildOptions | None = None) -> Iterator[Child]:
    """Run `python -m MODULE` with the job on its stdin; the child is killed, if it still runs, at the block's end.

    The child runs in its own session, so that Ctrl-C reaches only this process.
    """
    options = options or ChildOptions()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: a json.py in the working folder is not imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.inherit_log else log,
            encoding="utf-8",
            errors="replace",
            env=_environment(options),
            start_new_session=True,
        )
        child = Child(process, log, options)
        try:
            child.send_job(job)
            yield child
        except KeyboardInterrupt:
            if options.saves_on_interrupt:
                child.interrupt()
            raise
        finally:
            child.end()


def run_child(
    module: str,
    job: Mapping[str, Any],
    what: str,
    options: ChildOptions | None = None,
    progress: Progress | None = None,
) -> Any:
    """Run a child to its end, show the progress that it reports, and return its result (None if it has none).

    `job["out"]` is the file or folder that the child writes; `what` names the work in messages. Raises the
    GladstoneError that the child reports, ArtifactError if the disk is full, and ToolError, with the end of the log, if
    the child fails.
    """
    options = options or ChildOptions()
    large_pages = {name: os.environ.get(name, value) for name, value in LARGE_PAGES.items()}
    options = replace(options, environment=large_pages | dict(options.environment))
    result, progress = None, progress or Silent()
    with start_child(module, job, options) as child:
        for event in child.events():
            if "fraction" in event:
                progress.update(float(event["fraction"]))
            result = event.get("result", result)
        try:
            child.check(what)
        except ToolError:
            _check_room(job)
            raise
    return result


def describe_exit(code: int) -> str:
    """Describe how a process ended: 'exit code 7', 'SIGABRT', or 'SIGKILL: did memory run out?'."""
    return f"{exit_name(code)}: did memory run out?" if exit_name(code) == "SIGKILL" else exit_name(code)


def exit_name(code: int) -> str:
    """The signal that ended a process, such as 'SIGILL', or its exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _environment(options: ChildOptions) -> dict[str, str]:
    """This process's environment, with Gladstone's packages on the path whatever the working folder is."""
    root = Path(gladstone.__file__).parents[1]
    paths = [*map(str, options.python_path), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(options.environment)


def _event(line: str) -> dict[str, Any]:
    """The event on a line; empty if there is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _reported_error(event: dict[str, Any]) -> GladstoneError:
    """The child's error, of its class in `gladstone.errors`."""
    kind = getattr(errors, str(event.get("type")), ToolError)
    error: GladstoneError = kind(str(event["error"]))
    return error


def _check_room(job: Mapping[str, Any]) -> None:
    """Raise ArtifactError if the disk that a failed child wrote to is full: libraries report that in many ways."""
    target = Path(str(job.get("out", ".")))
    folder = target if target.is_dir() else target.parent
    if "out" in job and shutil.disk_usage(folder).free < LEAST_ROOM_BYTES:
        raise ArtifactError(f"{folder}: cannot be written: No space left on device. Free some and run it again.")
