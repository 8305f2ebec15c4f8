"""The quantiser's own process. The job comes as JSON on stdin; llama.cpp's log goes to stderr. Names llama_cpp."""

import ctypes
import json
import sys


def main() -> None:
    """Exit with llama.cpp's own return code."""
    from llama_cpp import llama_cpp

    job = json.load(sys.stdin)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = job["file_type"]
    params.nthread = job["threads"]
    code = llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params))
    sys.exit(int(code))


if __name__ == "__main__":
    main()
