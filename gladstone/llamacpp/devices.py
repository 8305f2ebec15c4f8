"""The devices that llama.cpp can compute on: the CPU, GPUs and accelerators."""

import ctypes
from dataclasses import dataclass
from typing import Any

from gladstone.llamacpp.backends import with_ggml_functions
from gladstone.llamacpp.library import library

KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}  # ggml-backend.h: ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can use: `kind` is cpu, gpu, igpu (integrated graphics), accel or other."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


def read_devices() -> tuple[Device, ...]:
    """All devices that the installed llama.cpp sees, with their currently free memory."""
    lib = with_ggml_functions(library())
    return tuple(_device(lib, lib.ggml_backend_dev_get(number)) for number in range(lib.ggml_backend_dev_count()))


def _device(lib: Any, handle: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    name, description = lib.ggml_backend_dev_name(handle), lib.ggml_backend_dev_description(handle)
    kind = KINDS.get(lib.ggml_backend_dev_type(handle), "other")
    return Device(_text(name), _text(description), kind, free.value, total.value)


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace").strip()
