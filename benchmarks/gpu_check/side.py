"""A side of a comparison, ours or plain transformers: a process that answers orders, so that no crash ends the others.

The parent writes an order as a line of JSON, the child answers with a line. What libraries print goes to a log file.
"""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu_check.results import CannotRunError

ROOT = Path(__file__).resolve().parents[2]
DEVICE_ERRORS = ("CUDA", "AcceleratorError", "cuBLAS")  # after one of them every later call of the process fails too
LAST_LINES = 3  # of the log, for a process that ended without an answer


class FailedError(Exception):
    """A side raised an error, ended, or did not answer in time."""


class Side:
    """The parent's hold on a child, which is started by the first order, and anew where it cannot go on."""

    def __init__(self, module: str, settings: Mapping[str, Any], log: Path) -> None:
        self._command = [sys.executable, "-m", module, json.dumps(settings)]
        self._log, self._text = log, b""
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, order: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises FailedError or CannotRunError."""
        end_s = time.monotonic() + limit_s
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"order": order, "arguments": arguments}).encode() + b"\n")
            process.stdin.flush()
            answer = self._read(process, end_s)
        except (FailedError, BrokenPipeError) as error:
            self.close()
            raise FailedError(f"{error} ({self._tail()})" if self._tail() else str(error)) from None
        if "cannot" in answer:
            raise CannotRunError(answer["cannot"])
        if "error" in answer:
            if any(word in answer["error"] for word in DEVICE_ERRORS):
                self.close()
            raise FailedError(answer["error"])
        return dict(answer["answer"])

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        self._text = b""
        return self._process

    def _read(self, process: subprocess.Popen[bytes], end_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        while b"\n" not in self._text:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                raise FailedError("no answer in time")
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise FailedError(f"the process ended with {process.wait()}")
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return dict(json.loads(line))

    def _tail(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-LAST_LINES:])[-300:]

    def close(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Orders(Protocol):
    """What a child can be asked to do, by the name of a method."""

    def answer(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order."""


def serve(make: Callable[[dict[str, Any]], Orders]) -> None:
    """The child: carry out orders until the parent is gone, at which the process ends in the midst of one."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(lines,), daemon=True).start()
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        orders: Orders | None = None
        while True:
            asked = json.loads(lines.get())
            try:
                orders = orders or make(json.loads(sys.argv[1]))
                said: dict[str, Any] = {"answer": orders.answer(asked["order"], asked["arguments"])}
            except CannotRunError as reason:
                said = {"cannot": str(reason)}
            except ModuleNotFoundError as error:
                traceback.print_exc()
                missing = str(error.name).partition(".")[0]
                said = {"error" if (ROOT / missing).exists() else "cannot": f"{missing} is not installed"}
            except Exception as error:  # noqa: BLE001 - whatever a check raises is its result
                traceback.print_exc()
                said = {"error": f"{type(error).__name__}: {error}"[:500]}
            answers.write(json.dumps(said) + "\n")


def _read_orders(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)
