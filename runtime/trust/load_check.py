"""A model file that nobody vouches for is first tried in a child process: what crashes there cannot crash us.

llama.cpp ends the process over a failed assertion, and checks little of what a file claims.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from gladstone.errors import ArtifactError
from gladstone.machine.host import processor_name, readable_bytes
from gladstone.report.terminal import one_line
from runtime.trust.checked_files import Stamp, is_remembered, remember

TRIAL = 1  # a number for what the child does: after a change of it all files are tried again
LEAST_S, BYTES_PER_S = 5.0, 200e6  # processor time for a file of any size, and more for each of its bytes
CLOCK_FACTOR = 4  # a busy machine, or a slow disk, takes as many times longer
ROOM_BYTES = 200_000_000  # on top of the file's own size, which llama.cpp copies where it wants another order
OWN_BYTES = 100_000_000  # what Python, numpy and llama.cpp take before they have seen the file
POLL_S = 0.05
SHOWN_CHARACTERS = 300
SOURCE_FOLDER = re.compile(r"\S*/(?=[\w.-]+:\d+:)")  # of the machine that llama.cpp was built on
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|(?:failed|unable) to allocate")
# what llama.cpp says of a file that may be whole, and what helps
OF_ANOTHER_VERSION = re.compile(
    r"unknown (?:model architecture|pre-tokenizer)|key not found|not found$|tensor '[^']*' not found|"
    r"wrong (?:number of tensors|shape)|missing tensor"
)
OTHER_VERSION = "A newer llama.cpp, or the model as a newer file, may help."
CPU_ONLY = {
    "GGML_NO_BACKTRACE": "1",  # llama.cpp would start a debugger to write one
    "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What the child is to do, and within which bounds."""

    path: Path
    size_bytes: int
    processor_s: float
    vocab_only: bool

    def line(self) -> str:
        """As the child reads it."""
        job = {"path": os.fspath(self.path.absolute()), "processor_s": self.processor_s, "vocab_only": self.vocab_only}
        return json.dumps(job | {"memory_bytes": ROOM_BYTES + self.size_bytes}) + "\n"


def check_loadable(path: Path, *, timeout_s: float | None = None, vocab_only: bool = False) -> None:
    """Load the model in a child and let it read and write a few words; that it went well is remembered.

    `timeout_s` is of processor time, by default 5 s and more for a large file; by the clock it may take four times as
    much. With `vocab_only` no weights are looked at. Raises ArtifactError, in one line, for a file that cannot be used.
    """
    from gladstone.gguf.header import read_model

    kinds = [_kind(vocab_only=True), _kind(vocab_only=False)] if vocab_only else [_kind(vocab_only=False)]
    if any(is_remembered(kind, path) for kind in kinds):
        return
    headers = read_model(path)
    stamps = [Stamp.of(header.path, header.data_offset) for header in headers]
    size = sum(header.size_bytes for header in headers)
    processor_s = LEAST_S + size / BYTES_PER_S if timeout_s is None else timeout_s
    _run(_Job(path, size, processor_s, vocab_only))
    remember(kinds[0], path, stamps)


def _kind(*, vocab_only: bool) -> str:
    """What was found out, by which software, on which processor."""
    return f"tried {TRIAL} {vocab_only} {metadata.version('llama-cpp-python')} {processor_name()}"


def _run(job: _Job) -> None:
    """Raises ArtifactError unless the child passes."""
    from gladstone.gguf.header import renewal

    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "runtime.trust.load_check_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | CPU_ONLY,
        ) as child,
    ):
        try:
            over = _watch(child, job)
            said = child.stdout.read() if child.stdout is not None else ""
        except BaseException:  # Ctrl-C above all
            child.kill()
            child.wait()
            raise
        errors.seek(0)
        last = errors.read().decode("utf-8", "replace")
    problem = over or _problem(job, child.returncode, said, last)
    if problem is not None:
        problem = problem.removeprefix(f"{job.path.absolute()}: ").rstrip(".")
        advice = OTHER_VERSION if OF_ANOTHER_VERSION.search(problem) else renewal(job.path)
        raise ArtifactError(f"{job.path}: {problem}. {advice}")


def _watch(child: "subprocess.Popen[str]", job: _Job) -> str | None:
    """Wait for the child's end, or end it: then why."""
    import psutil

    assert child.stdin is not None  # noqa: S101 - a pipe
    with suppress(BrokenPipeError):  # a child that died says why on its stderr
        child.stdin.write(job.line())
        child.stdin.flush()  # and left open: where it ends, so does the child
    # the child limits what it allocates where the system can; what the file's mapping shows of it comes on top
    most_bytes = OWN_BYTES + ROOM_BYTES + 2 * job.size_bytes
    end_s = time.monotonic() + CLOCK_FACTOR * job.processor_s
    process = psutil.Process(child.pid)
    while True:
        try:
            child.wait(POLL_S)
            return None
        except subprocess.TimeoutExpired:
            over = _too_long(job) if time.monotonic() > end_s else None
        with suppress(psutil.Error):  # it may be gone meanwhile
            if process.memory_info().rss > most_bytes:
                over = _too_large(job)
        if over is not None:
            child.kill()
            child.wait()
            return over


def _problem(job: _Job, code: int, said: str, last: str) -> str | None:
    """Why a child that ended by itself has not passed; None if it has."""
    result = json.loads(said) if said.endswith("\n") else {}
    if code == 0 and "passed" in result:
        return None
    if NO_MEMORY.search(last + result.get("refused", "")):
        return _too_large(job)
    if "refused" in result:
        return str(result["refused"])
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if -code == getattr(signal, "SIGXCPU", None):
        return _too_long(job)
    if code == -signal.SIGILL:
        return "this build of llama.cpp uses instructions that the processor does not have: see `runtime doctor`"
    lines = [line for line in last.splitlines() if line.strip()]
    told = next((line for line in lines if "ASSERT" in line or "what():" in line), lines[-1] if lines else "no message")
    told = SOURCE_FOLDER.sub("", told)
    return f"llama.cpp dies of it ({_name(code)}): {one_line(told, SHOWN_CHARACTERS)}"


def _name(code: int) -> str:
    """How a process ended."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _too_long(job: _Job) -> str:
    return f"reading it and a few words takes more than {job.processor_s:,.0f} s"


def _too_large(job: _Job) -> str:
    size, room = readable_bytes(job.size_bytes), readable_bytes(ROOM_BYTES)
    return f"reading it takes more memory than its {size} and {room}, or than there is"
