"""Child process that measures the memory of a context by creating one. Names llama_cpp."""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from gladstone.process.child_main import serve

BUFFER = re.compile(r"\S+ +(?:KV|RS|SWA|compute|output|\S*cache) +buffer size = +([\d.]+) MiB")


def measure(job: dict[str, Any]) -> int:
    """Bytes of KV cache, compute and output buffers that llama.cpp logs. Reads no weight."""
    lib = library()
    log: list[str] = []
    callback = lib.llama_log_callback(lambda _level, text, _data: log.append(text.decode("utf-8", "replace")))
    with Model(Path(job["model"])) as model:
        params = lib.llama_context_default_params()
        params.n_ctx = job["tokens"]
        lib.llama_log_set(callback, ctypes.c_void_p(0))
        handle = lib.llama_init_from_model(model.handle, params)
        sys.stderr.write("".join(log))
        if not handle:
            sys.exit(1)
        lib.llama_free(handle)
    return int(sum(float(size) for size in BUFFER.findall("".join(log))) * (1 << 20))


if __name__ == "__main__":
    serve(measure)
