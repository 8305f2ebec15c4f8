"""Progress reports of library code, independent of how or whether they are shown."""

import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """Shows a step while it runs, the fraction and note of the last `update`, and the elapsed time at the end."""

    def start(self, name: str) -> None: ...
    def update(self, fraction: float | None, note: str = "") -> None: ...
    def finish(self, failed: bool) -> None: ...


class Silent:
    """Shows nothing: for tests and for use as a library."""

    def start(self, name: str) -> None:
        """Ignored."""

    def update(self, fraction: float | None, note: str = "") -> None:
        """Ignored."""

    def finish(self, failed: bool) -> None:
        """Ignored."""


@contextmanager
def step(progress: Progress, name: str) -> Iterator[Progress]:
    """Report the block as one step, as failed if it raises."""
    progress.start(name)
    failed = True
    try:
        yield progress
        failed = False
    finally:
        progress.finish(failed)


class Lines:
    """Shows progress on a stream: a line that redraws itself on a terminal, occasional plain lines elsewhere."""

    def __init__(self, stream: TextIO | None = None, plain_interval_s: float = 15.0) -> None:
        self._stream = stream or duplicate_stderr()
        self._live = is_terminal(self._stream)
        self._interval_s = 0.2 if self._live else plain_interval_s
        self._lock = threading.Lock()
        self._name, self._state, self._begin_s = "", "", 0.0
        self._stop: threading.Event | None = None
        self._ticker: threading.Thread | None = None

    def start(self, name: str) -> None:
        self._name, self._state, self._begin_s = name, "", time.monotonic()
        if not self._live:
            self._write(f"{name} …\n")
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, args=(self._stop,), daemon=True)
        self._ticker.start()

    def update(self, fraction: float | None, note: str = "") -> None:
        share = "" if fraction is None else f"{fraction:4.0%}"
        self._state = "  ".join(part for part in (share, note) if part)

    def show(self, text: str) -> None:
        """Write permanent lines, above the line of a running step."""
        clear = "\r\x1b[2K" if self._live and self._stop is not None and not self._stop.is_set() else ""
        self._write(f"{clear}{text}\n")

    def finish(self, failed: bool) -> None:
        if self._stop is None or self._ticker is None:
            raise RuntimeError("finish() without start()")
        self._stop.set()
        self._ticker.join()
        clear = "\r\x1b[2K" if self._live else ""
        self._write(f"{clear}{self._summary(failed)}\n")

    def _summary(self, failed: bool) -> str:
        state = f"  {self._state}" if self._state and not failed else ""
        mark = "stopped after" if failed else "done in"
        return f"{self._name}: {mark} {time.monotonic() - self._begin_s:.1f} s{state}"

    def _present(self) -> str:
        elapsed = f"{time.monotonic() - self._begin_s:.0f} s"
        return "  ".join(part for part in (f"{self._name} …", self._state, elapsed) if part)

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(self._interval_s):
            line = self._present()
            if self._live:  # a line that wraps could not be cleared
                self._write(f"\r\x1b[2K{line[: terminal_size(self._stream).columns - 1]}")
            else:
                self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()


def is_terminal(stream: TextIO) -> bool:
    """True if lines on the stream can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Size of the stream's own terminal, even if the standard streams are redirected; 80 × 24 if unknown."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, io.UnsupportedOperation, AttributeError):
        return os.terminal_size((80, 24))
    return os.terminal_size((size.columns or 80, size.lines or 24))


def duplicate_stderr() -> TextIO:
    """A duplicate of stderr, so that `redirect_output` redirects the libraries' output but not the progress."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, io.UnsupportedOperation, AttributeError):  # a test or a notebook replaced it
        return sys.stderr
