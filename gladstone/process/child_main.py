"""The child's side of a child process: its `main` calls `serve`. See `gladstone.process.child`."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from gladstone.errors import GladstoneError

EXIT_REPORTED = 3  # the child has reported an error for the user

_events: TextIO | None = None


def serve(work: Callable[[dict[str, Any]], Any], on_orphaned: Callable[[], None] | None = None) -> None:
    """Read the job from stdin, do the work, and send its result, or the GladstoneError that it raises.

    stdout is reserved for events: other output goes to stderr, the log. When the parent dies, this process exits at
    once, or `on_orphaned` is called in another thread.
    """
    global _events  # noqa: PLW0603 - a process has one parent
    _events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_wait_for_orphaning, args=(on_orphaned or _exit,), daemon=True).start()
    try:
        result = work(job)
    except GladstoneError as error:
        print(error, file=sys.stderr)
        send(error=str(error), type=_public_kind(error))
        sys.exit(EXIT_REPORTED)
    if result is not None:
        send(result=result)


def _public_kind(error: GladstoneError) -> str:
    """The error's nearest class in `gladstone.errors`, which the parent knows."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == GladstoneError.__module__)


def send(**fields: Any) -> None:
    """Send an event to the parent; outside of `serve` it goes to stdout."""
    print(json.dumps(fields), file=_events or sys.stdout, flush=True)


def send_fraction(fraction: float) -> None:
    """Report the progress of the work as a fraction from 0 to 1."""
    send(fraction=fraction)


def save_and_stop() -> None:
    """For `on_orphaned`: send SIGTERM to this process, on which a training run saves a checkpoint and stops."""
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_orphaning(on_orphaned: Callable[[], None]) -> None:
    os.read(0, 1)  # returns when the parent's end closes: after the job the parent sends nothing
    on_orphaned()


def _exit() -> None:
    os._exit(1)
