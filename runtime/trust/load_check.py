"""A model file that nobody vouches for is first tried in a child process: what crashes there cannot crash us.

llama.cpp ends the process over a failed assertion, and checks little of what a file claims.
"""

import os
import re
import signal
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError
from gladstone.machine.host import cpu_name, readable_bytes
from gladstone.process.child import ChildOptions, exit_name, start_child
from gladstone.report.terminal import one_line
from runtime.trust.checked_files import Stamp, is_remembered, remember

TRIAL = 1  # a number for what the child does: after a change of it all files are tried again
LEAST_S, BYTES_PER_S = 5.0, 200e6  # processor time for a file of any size, and more for each of its bytes
CLOCK_FACTOR = 4  # a busy machine, or a slow disk, takes as many times longer
ROOM_BYTES = 200_000_000  # on top of the file's own size, which llama.cpp copies where it wants another order
OWN_BYTES = 100_000_000  # what Python, numpy and llama.cpp take before they have seen the file
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

    def fields(self) -> dict[str, Any]:
        """As the child reads it."""
        job = {"path": os.fspath(self.path.absolute()), "processor_s": self.processor_s, "vocab_only": self.vocab_only}
        return job | {"memory_bytes": ROOM_BYTES + self.size_bytes}

    def options(self) -> ChildOptions:
        """Limits that this process watches; the child limits what it allocates itself, where the system can."""
        # what the file's mapping shows of itself in resident memory comes on top of what the child allocates
        memory_bytes = OWN_BYTES + ROOM_BYTES + 2 * self.size_bytes
        return ChildOptions(environment=CPU_ONLY, time_s=CLOCK_FACTOR * self.processor_s, memory_bytes=memory_bytes)


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
    return f"tried {TRIAL} {vocab_only} {metadata.version('llama-cpp-python')} {cpu_name()}"


def _run(job: _Job) -> None:
    """Raises ArtifactError unless the child passes."""
    from gladstone.gguf.header import how_to_replace

    with start_child("runtime.trust.load_check_child", job.fields(), job.options()) as child:
        results = [event["result"] for event in child.events() if "result" in event]
        code = child.wait()
        if child.exceeded is not None:
            problem: str | None = _too_long(job) if child.exceeded == "time" else _too_large(job)
        else:
            problem = _problem(job, code, results[0] if results else {}, child.log())
    if problem is not None:
        problem = problem.removeprefix(f"{job.path.absolute()}: ").rstrip(".")
        advice = OTHER_VERSION if OF_ANOTHER_VERSION.search(problem) else how_to_replace(job.path)
        raise ArtifactError(f"{job.path}: {problem}. {advice}")


def _problem(job: _Job, code: int, result: dict[str, Any], log: str) -> str | None:
    """Why a child that ended by itself has not passed; None if it has."""
    if code == 0 and "passed" in result:
        return None
    if NO_MEMORY.search(log + result.get("refused", "")):
        return _too_large(job)
    if "refused" in result:
        return str(result["refused"])
    if -code == getattr(signal, "SIGXCPU", None):
        return _too_long(job)
    if code == -signal.SIGILL:
        return "this build of llama.cpp uses instructions that the processor does not have: see `runtime doctor`"
    lines = [line for line in log.splitlines() if line.strip()]
    told = next((line for line in lines if "ASSERT" in line or "what():" in line), lines[-1] if lines else "no message")
    told = SOURCE_FOLDER.sub("", told)
    return f"llama.cpp dies of it ({exit_name(code)}): {one_line(told, SHOWN_CHARACTERS)}"


def _too_long(job: _Job) -> str:
    return f"reading it and a few words takes more than {job.processor_s:,.0f} s"


def _too_large(job: _Job) -> str:
    size, room = readable_bytes(job.size_bytes), readable_bytes(ROOM_BYTES)
    return f"reading it takes more memory than its {size} and {room}, or than there is"
