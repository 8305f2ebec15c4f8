"""The devices that llama.cpp can compute on: the CPU, GPUs and accelerators."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gladstone.errors import UnsupportedError
from gladstone.llamacpp.backends import with_ggml_functions
from gladstone.llamacpp.library import library

KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}  # ggml-backend.h: ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can use: `kind` is cpu, gpu, igpu (integrated graphics), accel or other.

    `backend` is the part of llama.cpp that drives it, `bus` its address on the PCI bus, '' if unknown.
    """

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int
    backend: str = ""
    bus: str = ""


class _Properties(ctypes.Structure):
    """ggml-backend.h's ggml_backend_dev_props."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("caps", ctypes.c_bool * 16),  # it has five; more than any version's are room for all of them
    ]


def read_devices() -> tuple[Device, ...]:
    """All devices that the installed llama.cpp sees, with their currently free memory."""
    lib = with_ggml_functions(library())
    return tuple(_device(lib, handle) for handle in _handles(lib))


def layer_devices(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Those that hold layers of a model: all GPUs, or integrated graphics if there is no other.

    A GPU that two backends of llama.cpp drive is taken once, as llama.cpp itself takes it.
    """
    gpus: list[Device] = []
    for device in devices:
        if device.kind == "gpu" and not (device.bus and device.bus in {gpu.bus for gpu in gpus}):
            gpus.append(device)
    return tuple(gpus) or tuple(device for device in devices if device.kind == "igpu")[:1]


def device_list(names: Sequence[str]) -> Any:
    """llama.cpp's list of the devices with these names, in this order: an array that ends with NULL.

    Raises UnsupportedError for a device that is not there.
    """
    lib = with_ggml_functions(library())
    handles = {_text(lib.ggml_backend_dev_name(handle)): handle for handle in _handles(lib)}
    if missing := [name for name in names if name not in handles]:
        raise UnsupportedError(f"llama.cpp has no device {missing[0]}, only {', '.join(handles)}.")
    return (ctypes.c_void_p * (len(names) + 1))(*(handles[name] for name in names), None)


def _handles(lib: Any) -> list[int]:
    return [lib.ggml_backend_dev_get(number) for number in range(lib.ggml_backend_dev_count())]


def _device(lib: Any, handle: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    properties = _Properties()
    lib.ggml_backend_dev_get_props(handle, ctypes.byref(properties))
    return Device(
        name=_text(lib.ggml_backend_dev_name(handle)),
        description=_text(lib.ggml_backend_dev_description(handle)),
        kind=KINDS.get(lib.ggml_backend_dev_type(handle), "other"),
        free_bytes=free.value,
        total_bytes=total.value,
        backend=_text(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(handle))),
        bus=_text(properties.device_id),
    )


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace").strip()
