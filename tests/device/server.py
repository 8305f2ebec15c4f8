"""The process that is the device: `python -S server.py LIBRARIES RPC_LIBRARY PORT BYTES`, until stdin ends.

It reports `BYTES` as its memory, less what is allocated, and can allocate hardly more.
"""

import ctypes
import os
import resource
import sys
import threading
from pathlib import Path

FUNCTIONS, GET_MEMORY = 15, 2  # of ggml-backend-impl.h's ggml_backend_device_i
SLACK_BYTES = 24 << 20  # stacks, messages and the graph's work buffer, beyond the memory of the device
Size = ctypes.POINTER(ctypes.c_size_t)


class DeviceStruct(ctypes.Structure):
    """ggml-backend-impl.h's ggml_backend_device."""

    _fields_ = [("functions", ctypes.c_void_p * FUNCTIONS), ("registry", ctypes.c_void_p), ("context", ctypes.c_void_p)]


def private_bytes() -> int:
    """What this process has allocated, as RLIMIT_DATA counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


def main() -> None:
    folder, rpc_path, port, total = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    ggml, rpc = ctypes.CDLL(str(folder / "libggml.so.0")), ctypes.CDLL(rpc_path)
    ggml.ggml_backend_dev_by_type.restype = ctypes.POINTER(DeviceStruct)
    device = ggml.ggml_backend_dev_by_type(0)  # the processor
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    own_bytes = private_bytes()

    def report(_device: int, free: "ctypes._Pointer[ctypes.c_size_t]", all_of_it: object) -> None:
        free[0] = max(0, total - max(0, private_bytes() - own_bytes))
        all_of_it[0] = total  # type: ignore[index]

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, Size, Size)(report)
    device.contents.functions[GET_MEMORY] = ctypes.cast(callback, ctypes.c_void_p).value
    resource.setrlimit(resource.RLIMIT_DATA, (own_bytes + SLACK_BYTES + total,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    devices = (ctypes.POINTER(DeviceStruct) * 1)(device)
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(f"127.0.0.1:{port}".encode(), None, 1, 1, devices)
    sys.exit("the server of the device could not start")


if __name__ == "__main__":
    main()
