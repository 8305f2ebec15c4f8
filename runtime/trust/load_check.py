"""The load check: a model file that no manifest lists is first loaded in a child process, which may crash.

llama.cpp ends the process on a failed assertion, and validates little of what a file declares.
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
from runtime.trust.checked_files import Stamp, is_checked, mark_checked

CHECK_VERSION = 1  # of what the child does: after a change all files are checked again
LEAST_S, BYTES_PER_S = 5.0, 200e6  # CPU time for a file of any size, and rate for larger ones
CLOCK_FACTOR = 4  # elapsed time over CPU time, on a busy machine or a slow disk
ROOM_BYTES = 200_000_000  # besides the file's own size, which llama.cpp copies where it repacks weights
OWN_BYTES = 100_000_000  # Python, numpy and llama.cpp, before the file is loaded
SHOWN_CHARACTERS = 300
SOURCE_FOLDER = re.compile(r"\S*/(?=[\w.-]+:\d+:)")  # of the machine that llama.cpp was built on
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|(?:failed|unable) to allocate")
# llama.cpp's messages about files that may be intact, but made for another version
VERSION_MISMATCH = re.compile(
    r"unknown (?:model architecture|pre-tokenizer)|key not found|not found$|tensor '[^']*' not found|"
    r"wrong (?:number of tensors|shape)|missing tensor"
)
OTHER_VERSION = "A newer llama.cpp, or a newer file of the model, may help."
CPU_ONLY = {
    "GGML_NO_BACKTRACE": "1",  # llama.cpp would start a debugger to write one
    "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What the child checks, and its limits."""

    path: Path
    size_bytes: int
    processor_s: float
    vocab_only: bool
    room_bytes: int

    def fields(self) -> dict[str, Any]:
        """The job as the child reads it."""
        job = {"path": os.fspath(self.path.absolute()), "processor_s": self.processor_s, "vocab_only": self.vocab_only}
        return job | {"memory_bytes": self.room_bytes + self.size_bytes}

    def options(self) -> ChildOptions:
        """Limits that this process watches; the child limits what it allocates itself, where the system can."""
        # the resident pages of the mapped file count in addition to what the child allocates
        memory_bytes = OWN_BYTES + self.room_bytes + 2 * self.size_bytes
        return ChildOptions(environment=CPU_ONLY, time_s=CLOCK_FACTOR * self.processor_s, memory_bytes=memory_bytes)


def check_loadable(
    path: Path, *, timeout_s: float | None = None, vocab_only: bool = False, room_bytes: int = ROOM_BYTES
) -> None:
    """Load the model in a child process and generate a few tokens; a file that passed is not checked again.

    `timeout_s` limits CPU time, by default to 5 s and more for large files; elapsed time may be four times as long.
    `room_bytes` limits the child's memory beyond the file's size. `vocab_only` skips the weights. Raises ArtifactError,
    in one line, for a file that cannot be used.
    """
    from gladstone.gguf.header import read_model

    kinds = [_kind(vocab_only=True), _kind(vocab_only=False)] if vocab_only else [_kind(vocab_only=False)]
    if any(is_checked(kind, path) for kind in kinds):
        return
    headers = read_model(path)
    stamps = [Stamp.of(header.path, header.data_offset) for header in headers]
    size = sum(header.size_bytes for header in headers)
    processor_s = LEAST_S + size / BYTES_PER_S if timeout_s is None else timeout_s
    _run(_Job(path, size, processor_s, vocab_only, room_bytes))
    mark_checked(kinds[0], path, stamps)


def _kind(*, vocab_only: bool) -> str:
    """The key of a passed check: what was checked, with which version of llama.cpp, on which processor."""
    return f"tried {CHECK_VERSION} {vocab_only} {metadata.version('llama-cpp-python')} {cpu_name()}"


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
        advice = OTHER_VERSION if VERSION_MISMATCH.search(problem) else how_to_replace(job.path)
        raise ArtifactError(f"{job.path}: {problem}. {advice}")


def _problem(job: _Job, code: int, result: dict[str, Any], log: str) -> str | None:
    """Why a child that ended by itself did not pass; None if it passed."""
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
    failed = (line for line in lines if "ASSERT" in line or "what():" in line)
    message = SOURCE_FOLDER.sub("", next(failed, lines[-1] if lines else "no message"))
    return f"llama.cpp crashed while loading it ({exit_name(code)}): {one_line(message, SHOWN_CHARACTERS)}"


def _too_long(job: _Job) -> str:
    return f"loading it and generating a few tokens took more than {job.processor_s:,.0f} s"


def _too_large(job: _Job) -> str:
    size, room = readable_bytes(job.size_bytes), readable_bytes(job.room_bytes)
    return f"loading it takes more memory than its {size} and {room}, or than this machine has"
