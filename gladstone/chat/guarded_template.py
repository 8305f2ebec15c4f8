"""Untrusted chat templates, compiled and rendered in bounded time and memory.

Jinja cannot be bounded within a process: `'%99999999d' % 1` is computed while compiling, and nested loops may run
forever. So a child process does the work; it is killed when a template exceeds a limit, and started again.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gladstone.chat.guarded_template_child import (
    FIND_VARIABLES,
    READY,
    REFUSED,
    REPLY,
    REQUEST,
    TEXT,
    TOO_BIG,
    TOO_LONG,
    UTF8,
    TemplateLimits,
)
from gladstone.chat.jinja_sandbox import Rendering
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError, ToolError
from gladstone.machine.host import readable_bytes
from gladstone.report.terminal import visible

_CHILD = Path(__file__).with_name("guarded_template_child.py")
_PACKAGES = ("gladstone", "jinja2", "markupsafe")  # everything that the child imports beyond the standard library
# the only environment variables that the child gets: for its shared libraries and its time zone
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
_LONGEST_ERROR_BYTES = 10_000
_LAST_WORDS_LINES = 4
_GIVEN_UP_AFTER_S = 1.0  # how long a child that has closed its socket may take to exit


class TemplateProcess:
    """A child process that renders templates. It starts at once, so that it loads while the caller loads a model.

    Requests run one at a time; others wait. A child that exceeded a limit or died is replaced at the next request.
    """

    def __init__(self, limits: TemplateLimits | None = None) -> None:
        """Raises ToolError if no process can be started."""
        self.limits = limits or TemplateLimits()
        self._closed = False
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child else None

    def ask(self, head: bytes, body: bytes, purpose: str) -> str:
        """Send a request of `GuardedTemplate` and return the text; `purpose` ends the error messages.

        Raises DataError if the template fails or exceeds a limit, ToolError if the child cannot be started.
        """
        self._adopt_after_fork()
        with self._lock:
            if self._closed:
                raise ValueError("the template's process is closed")
            child = self._child if self._child and self._child.is_alive() else self._start()
            with ExitStack() as after_failure:  # Ctrl-C included: an unread answer would be taken for the next one
                after_failure.callback(self._end)
                child.wait_until_ready(self.limits.start_s)
                status, text = self._exchange(child, head, body, purpose)
                if status in (TEXT, REFUSED):  # end a child that exceeded a limit
                    after_failure.pop_all()
        return self._checked(status, text, purpose)

    def close(self) -> None:
        """End the child. A later `ask` raises ValueError."""
        self._adopt_after_fork()
        with self._lock:
            self._closed = True
            self._end()

    def _adopt_after_fork(self) -> None:
        # the child belongs to the process that started it, and the lock may have been held during the fork
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._lock = threading.Lock()
            self._end()

    def _start(self) -> "_Child":
        self._end()
        self._child = child = _Child(self.limits)
        self._finalizer = weakref.finalize(self, child.end)
        return child

    def _end(self) -> None:
        if self._finalizer:
            self._finalizer()
        self._child = self._finalizer = None

    def _exchange(self, child: "_Child", head: bytes, body: bytes, purpose: str) -> tuple[bytes, bytes]:
        longest_bytes = self.limits.longest_output_bytes(body)
        deadline_s = time.monotonic() + self.limits.time_s
        try:
            child.send([REQUEST.pack(len(head), len(body)), head, body], deadline_s)
            status, size = child.receive_header(deadline_s)
            if size > max(longest_bytes, _LONGEST_ERROR_BYTES):
                return TOO_LONG, b""
            return status, child.receive(size, deadline_s)
        except (TimeoutError, BlockingIOError):
            raise DataError(self._too_slow(purpose)) from None
        except (EOFError, ConnectionError):
            code = child.exit_code()
            if code in (-signal.SIGXCPU, -signal.SIGALRM):
                raise DataError(self._too_slow(purpose)) from None
            raise DataError(f"the chat template breaks the process that renders it ({_how(code)}).") from None

    def _checked(self, status: bytes, text: bytes, purpose: str) -> str:
        if status == TOO_BIG:
            limit = readable_bytes(self.limits.memory_bytes)
            raise DataError(f"the chat template needs more than {limit} of memory {purpose}.")
        if status == TOO_LONG:
            limit = readable_bytes(self.limits.output_bytes)
            raise DataError(f"the chat template writes more than {limit} {purpose}.")
        with suppress(UnicodeDecodeError):
            if status == TEXT:
                return text.decode(*UTF8)
            if status == REFUSED:
                raise DataError(text.decode(*UTF8))
        raise DataError("the chat template breaks the process that renders it (its reply is malformed).")

    def _too_slow(self, purpose: str) -> str:
        return f"the chat template takes longer than {self.limits.time_s:g} s {purpose}."


class GuardedTemplate(ChatTemplate):
    """An untrusted chat template with the interface of `ChatTemplate`; every request is bounded.

    Its process ends when the template is closed or garbage-collected, or when the program exits.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str] | None = None,
        process: TemplateProcess | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """`process` is one started earlier, which the template owns from here on.

        Raises DataError if the template does not compile or exceeds a limit, ToolError if no process can be started.
        """
        fields = {"source": source, "special_tokens": dict(special_tokens or {})}
        self._head = json.dumps(fields, ensure_ascii=False).encode(*UTF8)
        self.process = process or TemplateProcess()
        with ExitStack() as after_failure:
            after_failure.callback(self.close)
            super().__init__(source, special_tokens, name=name)
            after_failure.pop_all()

    def close(self) -> None:
        """End the process. A later rendering raises ValueError."""
        self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _find_variables(self) -> list[str]:
        names = json.loads(self.process.ask(self._head, FIND_VARIABLES, "to read"))
        return [name for name in names if isinstance(name, str)]

    def _compile(self) -> None:
        self.process.ask(self._head, b"", "to compile")

    def _render(self, rendering: Rendering) -> str:
        request = json.dumps(rendering.to_json(), ensure_ascii=False).encode(*UTF8)
        return self.process.ask(self._head, request, "for these turns")


class _Child:
    """One process and the socket to it."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._owner = os.getpid()
        self._is_ready = False
        try:
            self._socket, theirs = socket.socketpair()
        except OSError as error:
            raise ToolError(f"no socket for the process that renders chat templates: {error}.") from None
        with theirs:
            try:
                self._process = subprocess.Popen(
                    _command(limits),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,  # Ctrl-C reaches the parent alone
                )
            except OSError as error:
                self._socket.close()
                raise ToolError(f"the process that renders chat templates cannot be started: {error}.") from None
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self, limit_s: float) -> None:
        """Wait for the child to start. Raises ToolError with its last output if it exits or takes too long."""
        if self._is_ready:
            return
        try:
            status, _ = self.receive_header(time.monotonic() + limit_s)
        except (TimeoutError, BlockingIOError):
            raise ToolError(
                f"the process that renders chat templates ({sys.executable}) did not start within {limit_s:g} s."
            ) from None
        except (EOFError, ConnectionError):
            status = b""
        if status != READY:
            raise ToolError(self._failed_start())
        self._close_stderr()
        self._is_ready = True

    def send(self, parts: Sequence[bytes], deadline_s: float) -> None:
        self._wait_until(deadline_s)
        self._socket.sendall(b"".join(parts))

    def receive_header(self, deadline_s: float) -> tuple[bytes, int]:
        status, size = REPLY.unpack(self.receive(REPLY.size, deadline_s))
        return status, size

    def receive(self, size: int, deadline_s: float) -> bytes:
        """Read `size` bytes. Raises TimeoutError or BlockingIOError at the deadline, EOFError if the child exited."""
        received = bytearray(size)
        missing = memoryview(received)
        while missing:
            self._wait_until(deadline_s)
            count = self._socket.recv_into(missing)
            if not count:
                raise EOFError
            missing = missing[count:]
        return bytes(received)

    def end(self) -> None:
        """Kill and reap the child. In a fork of the process that started it, only close the connection."""
        self._socket.close()
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        else:
            self._process.returncode = 0  # it is not this process's child
        self._close_stderr()

    def exit_code(self) -> int:
        """Exit code of a child that has closed its socket, which may still be exiting; 0 if it does not exit."""
        try:
            code: int = self._process.wait(_GIVEN_UP_AFTER_S)
        except subprocess.TimeoutExpired:
            return 0
        return code

    def _failed_start(self) -> str:
        code = self.exit_code()
        said = visible("\n".join(self._last_words())) or "it printed nothing"
        return f"the process that renders chat templates ({sys.executable}) did not start ({_how(code)}): {said}"

    def _last_words(self) -> list[str]:
        pipe = self._process.stderr
        if pipe is None or pipe.closed:
            return []
        os.set_blocking(pipe.fileno(), False)  # another process may hold its other end
        return (pipe.read() or b"").decode(errors="replace").strip().split("\n")[-_LAST_WORDS_LINES:]

    def _close_stderr(self) -> None:
        if self._process.stderr:
            self._process.stderr.close()

    def _wait_until(self, deadline_s: float) -> None:
        # data that has arrived is read even past the deadline: this process may have been suspended
        self._socket.settimeout(max(deadline_s - time.monotonic(), 0))


def _command(limits: TemplateLimits) -> list[str]:
    # -I and -S: no user folders, no site-packages (whose .pth files would run), no Python environment variables
    roots = {str(Path(file).parents[1]) for name in _PACKAGES if (file := importlib.import_module(name).__file__)}
    settings = json.dumps({"paths": sorted(roots), "limits": asdict(limits)})
    python = Path(sys.executable or "python").absolute()
    return [str(python), "-I", "-S", "-B", "-X", "utf8", str(_CHILD.absolute()), settings]


def _how(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"
