"""Child process that quantises a GGUF with llama.cpp. Names llama_cpp."""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

from export.quantise.imatrix import read_imatrix
from gladstone.process.child_main import send_fraction, serve

FALLBACK = re.compile(
    r"^warning: (\S+) +- ncols +(\d+) not divisible by +\d+ \(required for type +(\S+)\).*-> falling back to +(\S+)$",
    re.M,
)
PREDICTED = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- .*MiB \((\S+)\)$", re.M)
SHARE = re.compile(r"^\[ *(\d+)/ *(\d+)\] ")


def quantise(job: dict[str, Any]) -> dict[str, Any]:
    """Quantise; returns fallbacks and, for a dry run, each tensor's type. Exits with llama.cpp's code on failure."""
    from llama_cpp import llama_cpp

    log: list[str] = []

    def keep(_level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", "replace")
        log.append(line)
        sys.stderr.write(line)
        share = SHARE.match(line)
        if share:
            send_fraction(int(share[1]) / int(share[2]))

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    params = _params(llama_cpp, job)
    code = llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params))
    if code:
        sys.exit(int(code))
    text = "".join(log)
    fallbacks = [(name, int(columns), wanted, got) for name, columns, wanted, got in FALLBACK.findall(text)]
    return {"fallbacks": fallbacks, "types": dict(PREDICTED.findall(text))}


def _params(llama_cpp: Any, job: dict[str, Any]) -> Any:
    """llama.cpp's default parameters with the job's settings; keeps alive what the structure points at."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = job["file_type"]
    params.nthread = job["threads"]
    params.dry_run = job["dry_run"]
    if job["overrides"]:
        overrides = (llama_cpp.llama_model_tensor_override * (len(job["overrides"]) + 1))()
        for each, (pattern, kind) in zip(overrides, job["overrides"], strict=False):
            each.pattern, each.type = pattern.encode(), kind
        params.tt_overrides = overrides
    if job["imatrix"]:
        matrix = read_imatrix(Path(job["imatrix"]))
        entries = (llama_cpp.llama_model_imatrix_data * (len(matrix.weights) + 1))()
        for entry, (name, weights) in zip(entries, matrix.weights.items(), strict=False):
            entry.name, entry.size = name.encode(), weights.size
            entry.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
        params.kept = matrix  # ctypes keeps the array, not what numpy owns
    return params


if __name__ == "__main__":
    serve(quantise)
