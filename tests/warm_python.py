"""A Python that has imported the heavy libraries: a child process starts in milliseconds instead of 4 to 15 s.

`warm_python` yields an executable that stands for `sys.executable`. It hands its arguments, environment, working folder
and standard streams to a server, `python -m tests.warm_python ADDRESS LIBRARY…`, which forks. What runs is the real
program in a process of its own; only the import of the libraries is shared. Signals, the exit code and the end of the
parent reach the child as they would without it; limits that a parent sets for its child (`setrlimit`) do not. A program
that is a file, no module and no code, gets a Python of its own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests.waiting import PATIENCE_S, wait_until

EXPORT = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "safetensors.torch", "peft",
)  # fmt: skip
TRAINING = ("unsloth", "peft", "transformers.models.llama.modeling_llama", "matplotlib.pyplot")  # in this order
PYTHON = sys.executable  # itself: for what is killed, is limited, or has other settings when it imports
SIZE, STATUS = struct.Struct(">Q"), struct.Struct(">i")

# signals wait until the child is there to get them; a child that died of one is followed by this process
EXECUTABLE = """#!{python} -ISs
import json, os, resource, signal, socket, struct, sys
arguments = sys.argv[1:]
if arguments[arguments[:1] == ["-P"] :][:1] not in (["-m"], ["-c"]):
    os.execv({python!r}, [{python!r}, *arguments])
passed = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
signal.pthread_sigmask(signal.SIG_BLOCK, passed)
request = json.dumps(
    {{"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}}
).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [struct.pack(">Q", len(request))], [0, 1, 2])
server.sendall(request)
pid = struct.unpack(">Q", server.recv(8, socket.MSG_WAITALL))[0]
nothing = os.open(os.devnull, os.O_RDWR)
for stream in range(3):
    os.dup2(nothing, stream)
for number in passed:
    signal.signal(number, lambda number, frame: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
code = struct.unpack(">i", server.recv(4, socket.MSG_WAITALL))[0]
if code < 0:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def warm_python(folder: Path, libraries: Sequence[str] = EXPORT) -> Iterator[Path]:
    """The executable, while its server runs."""
    address, executable = folder / "server", folder / "python"
    executable.write_text(EXECUTABLE.format(python=sys.executable, address=str(address)), encoding="utf-8")
    executable.chmod(0o755)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": root}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.warm_python", str(address), str(executable), *libraries],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip

    def check() -> None:
        assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")

    try:
        wait_until(address.exists, "the server listens; it imports while children wait", check)
        yield executable
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(PATIENCE_S)


class Server:
    """Forks for every connection, and reports to it how the child ended."""

    def __init__(self, address: str, executable: str) -> None:
        self._executable = executable
        self._own_path = list(sys.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._end)
        self._running: dict[int, tuple[int, socket.socket]] = {}  # pidfd and connection by process id

    def run(self) -> NoReturn:
        """Until stdin ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _end(self) -> NoReturn:
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, SIZE.size, 3)
        request = connection.recv(SIZE.unpack(size)[0], socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            self._become(json.loads(request), streams, connection)
        connection.sendall(SIZE.pack(pid))
        for stream in streams:
            os.close(stream)
        self._running[pid] = os.pidfd_open(pid), connection
        self._selector.register(self._running[pid][0], selectors.EVENT_READ, partial(self._ended, pid))
        self._selector.register(connection, selectors.EVENT_READ, partial(self._abandoned, pid))

    def _ended(self, pid: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        process, connection = self._running.pop(pid)
        for place in (process, connection):
            with suppress(KeyError):
                self._selector.unregister(place)
        with suppress(OSError):  # the executable was killed
            connection.sendall(STATUS.pack(code))
        os.close(process)
        connection.close()

    def _abandoned(self, pid: int) -> None:
        """The executable was killed: so is what it stands for."""
        self._selector.unregister(self._running[pid][1])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _become(self, request: Mapping[str, Any], streams: Sequence[int], connection: socket.socket) -> NoReturn:
        """Of a forked child: run the program, and exit as Python would."""
        code = 1
        try:
            for place in (self._listener, self._selector, connection):
                place.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.executable = self._executable
            # torch makes its pool of threads anew in a child, and two threads that are the first to ask get none; as
            # many as a Python of its own would have, since sums differ in their last bit with the number of threads
            threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
            importlib.import_module("torch").set_num_threads(threads)
            code = _exit_code(lambda: _run_program(request["arguments"], self._own_path))
        except BaseException:  # noqa: BLE001 - a child may never get back into the server's code
            traceback.print_exc()
        finally:
            for output in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    output.flush()
            if code < 0:
                signal.signal(-code, signal.SIG_DFL)
                os.kill(os.getpid(), -code)
            os._exit(code)


def _exit_code(program: Callable[[], None]) -> int:
    """Run a program to its end, with all that Python does there; the code as subprocess reports it."""
    code = 0
    try:
        program()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - shown, as Python does it
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code


def _run_program(arguments: list[str], own_path: list[str]) -> None:
    """As `python [-P] (-m MODULE | -c CODE) ARGUMENT…`."""
    safe = arguments[0] == "-P"
    kind, program, *rest = arguments[1:] if safe else arguments
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*([] if safe else [str(Path.cwd())]), *paths, *own_path]
    assert kind in ("-m", "-c"), f"no option of this Python: {kind}"
    sys.argv = [program if kind == "-m" else kind, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # a test's own code


def main() -> None:
    """Listen, import the libraries, with one thread, so that a fork leaves none behind, and serve."""
    address, executable, *libraries = sys.argv[1:]
    server = Server(address, executable)
    if "unsloth" in libraries:
        importlib.import_module("finetune.model.trainable").prepare_environment()
    for name in libraries:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    gc.freeze()  # a collection in a child would copy the pages of all that is shared
    server.run()


if __name__ == "__main__":
    main()
