"""llama.cpp's shared library, loaded once with the best CPU backend, and the end of its log. Names llama_cpp."""

import ctypes
import functools
import re
from collections import deque
from typing import Any

from gladstone.llamacpp.abort import install_last_line
from gladstone.llamacpp.backends import load_best_backend
from gladstone.report.terminal import one_line

LOG_NOISE = re.compile(r"^(?:\w+: )+")  # function names at the beginning of llama.cpp's log lines
MAX_REASON_CHARACTERS = 300
DEBUG = 1  # ggml.h's GGML_LOG_LEVEL_DEBUG
NO_MEMORY = re.compile(r"(?:failed|unable) to allocate|out of memory|bad_alloc", re.IGNORECASE)

_log_tail: deque[str] = deque(maxlen=20)
_callbacks: list[object] = []  # keeps the ctypes callbacks alive


@functools.cache
def library() -> Any:
    """Load llama.cpp's ctypes module once; its log is kept for error messages instead of printed.

    Raises UnsupportedError if no CPU backend works.
    """
    from llama_cpp import llama_cpp

    def keep(level: int, text: bytes, _data: object) -> None:
        if level != DEBUG:  # a failing context logs hundreds of them, and says why before
            _log_tail.append(text.decode("utf-8", "replace").rstrip())

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    install_last_line(llama_cpp._lib)
    load_best_backend(llama_cpp)  # else llama.cpp searches for backends itself, in the working directory too
    llama_cpp.llama_backend_init()
    _callbacks.append(callback)
    return llama_cpp


def clear_log() -> None:
    """Clear the kept log before a call whose messages matter."""
    _log_tail.clear()


def log_tail() -> str:
    """The last lines that llama.cpp logged."""
    return "\n".join(line for line in _log_tail if line)


def lacks_memory() -> bool:
    """True if the log says that the call failed for want of memory, here or on a GPU."""
    return any(NO_MEMORY.search(line) for line in _log_tail)


def failure_reason() -> str:
    """The log line that says why a call failed, without function names and the final full stop."""
    lines = [line for entry in _log_tail for line in entry.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    line = (errors or lines or ["it logged no reason"])[0 if errors else -1]
    return one_line(LOG_NOISE.sub("", line), MAX_REASON_CHARACTERS).rstrip(".")
