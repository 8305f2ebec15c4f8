"""Commands in forked children of a process that has imported the libraries: a start takes milliseconds, not 15 s.

`python -m tests.faults.forked` is a server: JSON lines in, JSON lines out; `Server` is its other end. With the
capability of a GPU the commands run Unsloth's CUDA classes on the processor, see `tests.cuda_on_cpu`.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from finetune.model.trainable import prepare_environment
from gladstone.process.import_without_gc import import_without_gc
from tests.cuda_on_cpu import Card, install

STOP_S = 120
# in this order: unsloth patches what comes after it
IMPORTED = (
    "unsloth", "peft", "transformers.models.llama.modeling_llama", "matplotlib.pyplot", "finetune.cli", "finetune.run",
)  # fmt: skip


def warm_up() -> None:
    """Import what a run imports, with one thread, so that a fork leaves no thread behind."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MPLBACKEND"] = "agg"
    prepare_environment()
    with import_without_gc():
        for name in IMPORTED:
            importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def fork(
    arguments: list[str], printed: Path, told: Path, before: Callable[[], object], cli: str = "finetune.cli"
) -> int:
    """Start a command, `finetune ARGUMENTS` unless another is named, in a child that writes stdout and stderr to two files; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path, descriptor in ((printed, 1), (told, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", buffering=1, closefd=False) for place in (1, 2))
        # torch makes its pool of threads anew in a child, and two threads that are the first to ask get none
        importlib.import_module("torch").set_num_threads(1)
        before()
        code = _run(arguments, cli)
    except BaseException:  # noqa: BLE001 - a child may never get back into the parent's code
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _run(arguments: list[str], cli: str) -> int:
    main = importlib.import_module(cli).main
    try:
        main(arguments, prog_name=cli)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return 0


def exit_code(status: int) -> int:
    """As a shell tells it of a signal, negative as subprocess does."""
    return os.waitstatus_to_exitcode(status)


@dataclass
class Child:
    """A command under way; `wait` returns its exit code."""

    server: "Server"
    pid: int
    folder: Path

    @property
    def printed(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def told(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        code: int = self.server.ask({"wait": self.pid})["code"]
        return code

    def wait_until(self, begun: Callable[[], bool]) -> Self:
        """Until `begun` is true; fails after a while with what the child told."""
        deadline_s = time.monotonic() + STOP_S
        while not begun():
            assert time.monotonic() < deadline_s, self.told
            assert Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z", self.told
            time.sleep(0.001)
        return self


class Server:
    """Starts commands; a context."""

    def __init__(self, folder: Path, *capability: int) -> None:
        """With `capability`, such as 7, 5, each command sees two GPUs of this kind."""
        self._folder, self._count = folder, 0
        self._capability = [str(part) for part in capability]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.faults.forked", *self._capability]
        with (self._folder / "server.log").open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                cwd=Path(__file__).parents[2],
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=STOP_S)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *arguments: Any, before: str = "") -> Child:
        """Start `finetune ARGUMENTS`, after the Python code `before`."""
        self._count += 1
        folder = self._folder / f"child-{self._count}"
        folder.mkdir()
        (folder / "before.py").write_text(before)
        asked = {"arguments": [str(each) for each in arguments], "folder": str(folder)}
        return Child(self, self.ask(asked)["pid"], folder)

    def run(self, *arguments: Any, before: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        child = self.start(*arguments, before=before)
        return child.wait(), child.printed, child.told


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if len(sys.argv) == 3:
        install(Card((int(sys.argv[1]), int(sys.argv[2])), count=2))
    warm_up()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answers.write(json.dumps({"code": exit_code(os.waitpid(asked["wait"], 0)[1])}) + "\n")
            continue
        folder = Path(asked["folder"])
        before = folder / "before.py"
        pid = fork(asked["arguments"], folder / "stdout", folder / "stderr", partial(runpy.run_path, str(before)))
        answers.write(json.dumps({"pid": pid}) + "\n")


if __name__ == "__main__":
    _serve()


def spoil_gradient(forward: str, step: int) -> str:
    """Code that makes the gradient of a step, counted from 1, NaN beside a finite loss, for a class of forward pass."""
    return f"""
import math
from finetune.model.loss import {forward} as forward
usual, steps = forward.loss, []
def loss(self, batch, divisor):
    found = usual(self, batch, divisor)
    steps.append(found.requires_grad)
    if found.requires_grad and sum(steps) == {step}:
        found.register_hook(lambda gradient: gradient * math.nan)
    return found
forward.loss = loss
"""
