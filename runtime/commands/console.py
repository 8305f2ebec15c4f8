"""Terminal input and output: dimmed text, a line while the user waits, typed or piped lines, Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Protocol, Self

import click

from gladstone.errors import DataError
from gladstone.rows.encodings import MARKS, decoded

PATIENCE_S = 2.0


def write(text: str, *, dim: bool = False, err: bool = False) -> None:
    """Print text without a line end and flush it, dimmed if the stream is a terminal."""
    click.echo(click.style(text, dim=True) if dim else text, nl=False, err=err)


def remark(text: str) -> None:
    """Print a line of the program, which is dimmed to tell it from the model's text."""
    write(f"{text}\n", dim=True)


def tolerate_narrow_encodings() -> None:
    """Print '?' for characters that the terminal's encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="replace")


class Waiting:
    """A line on stderr that appears if the block takes longer than `patience_s` (default: 2 s), erased at its end."""

    def __init__(self, what: str, patience_s: float | None = None) -> None:
        self._what = what
        self.shown = False
        self._timer = threading.Timer(PATIENCE_S if patience_s is None else patience_s, self._show)
        self._timer.daemon = True

    def end(self) -> None:
        """Erase the line. Ending twice is harmless."""
        self._timer.cancel()
        self._timer.join()
        if self.shown and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self.shown = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()

    def _show(self) -> None:
        sys.stderr.write(f"{self._what} …" + ("" if sys.stderr.isatty() else "\n"))
        sys.stderr.flush()
        self.shown = True


@contextmanager
def cancel_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C raise nothing within the block; the function that it yields returns whether it was pressed."""
    pressed = threading.Event()

    def remember(_signal: int, _frame: FrameType | None) -> None:
        pressed.set()

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class LineSource(Protocol):
    """The source of the user's lines."""

    def read(self) -> str | None:
        """The next line without its line end; None when the user leaves."""
        ...


class TypedLines:
    """Lines typed at a terminal, with editing and history. Ctrl-D, or Ctrl-C twice, leaves."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession

        self._session: PromptSession[str] = PromptSession()

    def read(self) -> str | None:
        interrupted = False
        while True:
            try:
                return self._session.prompt("> ")
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted:
                    return None
                interrupted = True
                write("Ctrl-C again, Ctrl-D or /exit leaves.\n", dim=True)


class PipedLines:
    """Lines of a pipe or a file, for scripted chats: UTF-8, or what a byte-order mark says.

    Raises DataError for a line that is not UTF-8.
    """

    def __init__(self) -> None:
        self._stream = sys.stdin.buffer
        self._number = 0
        self._wide: Iterator[str] | None = None  # the lines of UTF-16 or UTF-32, whose line ends take several bytes

    def read(self) -> str | None:
        if self._wide is not None:
            return next(self._wide, None)
        line = self._stream.readline()
        self._number += 1
        if self._number == 1 and line.startswith(tuple(MARKS)):
            self._wide = iter(decoded(line + self._stream.read(), "standard input").splitlines())
            return next(self._wide, None)
        if not line:
            return None
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"standard input, line {self._number}: not UTF-8.") from None


def open_lines() -> LineSource:
    """Typed lines on a terminal, piped lines otherwise."""
    return TypedLines() if sys.stdin.isatty() and sys.stdout.isatty() else PipedLines()
