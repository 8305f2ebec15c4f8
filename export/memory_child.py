"""What a context of a model takes, measured by making one, in a process of its own. Names llama_cpp."""

import ctypes
import json
import re
import sys
from pathlib import Path

from gladstone.errors import GladstoneError
from gladstone.llama import Model, library

BUFFER = re.compile(r"(\S+) +(?:KV|RS|SWA|compute|output|\S*cache) +buffer size = +([\d.]+) MiB")


def measure(model_path: Path, tokens: int) -> int:
    """Bytes of cache, compute and output buffers that llama.cpp tells of. Weights are not read."""
    lib = library()
    log: list[str] = []
    callback = lib.llama_log_callback(lambda _level, text, _data: log.append(text.decode("utf-8", "replace")))
    with Model(model_path) as model:
        params = lib.llama_context_default_params()
        params.n_ctx = tokens
        lib.llama_log_set(callback, ctypes.c_void_p(0))
        handle = lib.llama_init_from_model(model.handle, params)
        sys.stderr.write("".join(log))
        if not handle:
            sys.exit(1)
        lib.llama_free(handle)
    return int(sum(float(size) for _, size in BUFFER.findall("".join(log))) * (1 << 20))


def main() -> None:
    """Report the bytes. Exit code 3 marks an error whose message is meant for the user: the last line of stderr."""
    job = json.load(sys.stdin)
    try:
        print(json.dumps({"result": measure(Path(job["model"]), job["tokens"])}))
    except GladstoneError as error:
        print(error, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
