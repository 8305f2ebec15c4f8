"""The child process that compiles and renders chat templates for `guarded_template`.

It restricts itself before it reads any template: no files, no further processes, little memory, little time. The parent
starts it by its path, without site-packages, tells it where Jinja is, and talks to it through a socket (its stdin).
"""

import codecs
import importlib
import json
import math
import os
import signal
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

REQUEST, REPLY = struct.Struct(">QQ"), struct.Struct(">cQ")  # sizes of head and body; status and size of the text
FIND_VARIABLES = b"names"  # this body requests the names that the template reads
READY, TEXT, REFUSED, TOO_LONG, TOO_BIG = b"R", b"T", b"E", b"L", b"M"
UTF8 = ("utf-8", "surrogatepass")  # lone surrogates pass unchanged
_SOCKET, _CHUNK_BYTES = 0, 1 << 20
# modules that Jinja and Python import at first use, when no file can be opened any more
_LATE_MODULES = ("jinja2.constants", "jinja2.debug", "pprint", "textwrap", "unicodedata")
_LATE_CODECS = ("ascii", "latin-1", "unicode_escape", "utf-16")


@dataclass(frozen=True)
class TemplateLimits:
    """Limits for one request to a chat template; an ordinary one takes a millisecond and less than a megabyte."""

    time_s: float = 2.0
    memory_bytes: int = 512_000_000  # beyond what the process has before it reads a template
    output_bytes: int = 4_000_000
    output_bytes_per_input_byte: int = 16  # in addition, for long turns
    start_s: float = 30.0  # for starting the process, on a busy machine

    def longest_output_bytes(self, body: bytes) -> int:
        """The longest output in bytes that is allowed for the turns in a request's body."""
        return self.output_bytes + self.output_bytes_per_input_byte * len(body)


class _Renderer:
    """Answers requests; keeps the compiled template of the last request."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._head = b""
        self._special_tokens: dict[str, str] = {}
        self._template: Template | None = None

    def answer(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Return status and text. With an empty body the template is only compiled."""
        from gladstone.errors import DataError

        _allow_time(self._limits.time_s)
        try:
            return self._text(head, body)
        except DataError as error:
            return REFUSED, str(error).encode(*UTF8)
        except MemoryError:
            return TOO_BIG, b""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _text(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        from gladstone.chat.jinja_sandbox import Rendering, compile_template, render_template
        from gladstone.chat.template_variables import find_variables

        if self._template is None or head != self._head:
            self._template = None
            fields = json.loads(head.decode(*UTF8))
            self._template = compile_template(fields["source"])
            self._head, self._special_tokens = head, fields["special_tokens"]
        if not body:
            return TEXT, b""
        if body == FIND_VARIABLES:
            return TEXT, json.dumps(find_variables(json.loads(head.decode(*UTF8))["source"])).encode(*UTF8)
        rendering = Rendering.from_json(json.loads(body.decode(*UTF8)))
        text = render_template(self._template, self._special_tokens, rendering)
        longest = self._limits.longest_output_bytes(body)
        if len(text) > longest:
            return TOO_LONG, b""
        encoded = text.encode(*UTF8)
        return (TEXT, encoded) if len(encoded) <= longest else (TOO_LONG, b"")


def _allow_time(limit_s: float) -> None:
    """Make the system kill this process if it works for longer, in case its parent no longer exists to do so."""
    import resource  # missing on Windows, where the parent imports this module too

    cpu_s = math.ceil(time.process_time() + limit_s) + 1
    hardest_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hardest_s == resource.RLIM_INFINITY or cpu_s <= hardest_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, hardest_s))
    signal.setitimer(signal.ITIMER_REAL, limit_s + 1)


def _limit_memory(memory_bytes: int) -> None:
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        return  # not Linux: macOS has no such limit
    limit_bytes = pages * resource.getpagesize() + memory_bytes
    hardest_bytes = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hardest_bytes != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hardest_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def limit_process(memory_bytes: int) -> None:
    """Forbid this process to open or write files and to start processes, and limit its memory, for good."""
    import resource

    time.localtime()  # reads the time zone while files can still be opened
    _limit_memory(memory_bytes)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _receive(size: int) -> bytes | None:
    """The next `size` bytes from the parent, None if it has closed the socket."""
    received = bytearray()
    while len(received) < size:
        chunk = os.read(_SOCKET, min(size - len(received), _CHUNK_BYTES))
        if not chunk:
            return None
        received += chunk
    return bytes(received)


def _send(status: bytes, text: bytes) -> None:
    reply = memoryview(REPLY.pack(status, len(text)) + text)
    while reply:
        reply = reply[os.write(_SOCKET, reply) :]


def _serve(limits: TemplateLimits) -> None:
    renderer = _Renderer(limits)
    _send(READY, b"")
    while (sizes := _receive(REQUEST.size)) is not None:
        head_bytes, body_bytes = REQUEST.unpack(sizes)
        request = _receive(head_bytes + body_bytes)
        if request is None:
            return
        _send(*renderer.answer(request[:head_bytes], request[head_bytes:]))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    settings = json.loads(sys.argv[1])
    sys.path += settings["paths"]
    for module in ("gladstone.chat.jinja_sandbox", "gladstone.chat.template_variables", *_LATE_MODULES):
        importlib.import_module(module)
    for codec in _LATE_CODECS:
        codecs.lookup(codec)
    limits = TemplateLimits(**settings["limits"])
    limit_process(limits.memory_bytes)
    with suppress(ConnectionError):  # the parent has exited
        _serve(limits)


if __name__ == "__main__":
    _main()
