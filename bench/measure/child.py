"""The parent's side of the child processes: one at a time, ended whatever happens here."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import bench
from bench.measure.child_main import Job, encode_job
from bench.measure.measure import QualityJob, SpeedJob
from bench.measure.rows import Room, RowsJob, RowTokens
from bench.results import Answer, Loss, Measured, SpeedRun
from gladstone import errors
from gladstone.errors import ToolError

STDERR_LINES = 20
Event = tuple[str, dict[str, Any]]


def run_rows(job: RowsJob, label: str, on_row: Callable[[int], None]) -> tuple[Room, tuple[RowTokens, ...]]:
    """The items in the tokens of one model, counted in a child; `on_row` hears how many have come."""
    rows: list[RowTokens] = []
    room = Room(0, 0)
    with closing(_events(job, label)) as events:
        for kind, fields in events:
            if kind == "room":
                room = Room(**fields)
            elif kind == "row":
                rows.append(RowTokens(**fields))
                on_row(len(rows))
    return room, tuple(rows)


def run_quality(job: QualityJob, label: str, on_event: Callable[[int], None]) -> Measured:
    """Losses and answers of one model, measured in a child; `on_event` hears how many events have come."""
    losses, answers, peak_bytes = [], [], 0
    with closing(_events(job, label)) as events:
        for count, (kind, fields) in enumerate(events, 1):
            if kind == "loss":
                losses.append(Loss(**fields))
            elif kind == "answer":
                answers.append(Answer(**fields))
            else:
                peak_bytes = fields["peak_memory_bytes"]
            on_event(count)
    return Measured(tuple(losses), tuple(answers), peak_bytes)


def run_speed(job: SpeedJob, label: str) -> SpeedRun:
    """One timing of one model in a child."""
    (_kind, fields), _done = list(_events(job, label))
    return SpeedRun(**fields)


def _events(job: Job, label: str) -> Generator[Event, None, None]:
    """The child's events, `done` the last.

    Raises the child's own GladstoneError, or ToolError with the end of its stderr if it died.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr, _child(stderr) as child:
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the child has no pipes")
        with suppress(BrokenPipeError):  # it died at once: its exit status and stderr say why
            child.stdin.write(encode_job(job))
            child.stdin.flush()
        for line in child.stdout:
            fields = json.loads(line)
            kind = fields.pop("event")
            if kind == "error":
                raise _child_error(fields)
            yield kind, fields
            if kind == "done":
                return
        raise ToolError(_death_notice(label, child.wait(), stderr))


@contextmanager
def _child(stderr: IO[str]) -> Iterator[subprocess.Popen[str]]:
    # -P and an explicit path: a bench/ or json.py in the working directory must not be imported instead
    root = str(Path(bench.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bench.measure.child_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)


def _close(pipe: IO[str]) -> None:
    with suppress(BrokenPipeError):  # what was still buffered for a dead child
        pipe.close()


def _child_error(fields: dict[str, Any]) -> errors.GladstoneError:
    kind = getattr(errors, fields["type"], errors.DataError)  # a stage's own error is a kind of DataError
    error: errors.GladstoneError = kind(fields["message"])
    return error


def _death_notice(label: str, code: int, stderr: IO[str]) -> str:
    stderr.seek(0)
    tail = stderr.read().strip().splitlines()[-STDERR_LINES:]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
    last = "Its last words:\n" + "\n".join(tail) if tail else "It left no message."
    hint = " (signal 9 is often the system's answer to a lack of memory)" if code == -9 else ""
    return f"{label}: the process that measured this model {how}{hint}. {last}"
