"""The last line of a process that llama.cpp ends: a failed assertion, or a GPU that fails while it computes.

llama.cpp has no way to return such an error, and its state is lost. By default it would print a debugger's listing of
its stack.
"""

import ctypes
import os
import re
from typing import Any

from gladstone.report.terminal import one_line

SOURCE_FOLDER = re.compile(r"^.*?/(?=[\w.-]+:\d+:)")  # of the machine that llama.cpp was built on
MAX_CHARACTERS = 500
ADVICE = "If a GPU failed, --gpu-layers 0 computes without it."

_exit_code: int | None = None
_callbacks: list[object] = []  # keeps the ctypes callbacks alive


def exit_on_abort(code: int) -> None:
    """From now on an abort of llama.cpp exits with this code, as an error of a command does, instead of SIGABRT."""
    global _exit_code  # noqa: PLW0603 - a process ends once
    _exit_code = code


def install_last_line(lib: Any) -> None:
    """Make `lib`, llama.cpp's library, print one line where it gives up."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_on_abort)
    lib.ggml_set_abort_callback.restype = ctypes.c_void_p
    lib.ggml_set_abort_callback(callback)
    _callbacks.append(callback)


def last_line(message: bytes | None) -> str:
    """llama.cpp's message on one line, without the folder of its sources."""
    text = (message or b"it gave no reason").decode("utf-8", "replace")
    return one_line(SOURCE_FOLDER.sub("", text), MAX_CHARACTERS)


def _on_abort(message: bytes | None) -> None:
    """Called in the thread that fails, whatever other threads hold: no lock and no buffer may be needed."""
    if _exit_code is None:
        os.write(2, f"{last_line(message)}\n".encode(errors="replace"))
        return  # llama.cpp calls abort()
    os.write(2, f"\nError: llama.cpp cannot go on: {last_line(message)}. {ADVICE}\n".encode(errors="replace"))
    os._exit(_exit_code)
