"""Devices for a test: `with rpc_device(bytes) as device` gives this process one, `device_environment` its children."""

import ctypes
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.llamacpp.library import library
from gladstone.machine.packages import llamacpp_folder
from tests.device.rpc_library import rpc_library
from tests.waiting import wait_until

SERVER = Path(__file__).with_name("server.py")
HOOK = Path(__file__).with_name("site")
ENDPOINTS, LIBRARY = "TEST_DEVICES", "TEST_DEVICE_LIBRARY"  # environment variables that the hook reads
MIB = 1 << 20

_used: list[int] = []  # llama.cpp's registries of the devices of this process


@dataclass(frozen=True)
class Server:
    """A device's process and where it listens."""

    process: "subprocess.Popen[bytes]"
    endpoint: str

    def allocated_bytes(self) -> int:
        """Private memory of the process: everything that lies on the device, and its own few megabytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


@contextmanager
def serve_device(total_bytes: int) -> Iterator[Server]:
    """A device of this memory, known to no process yet; it ends with the block. It serves one process at a time."""
    port = _free_port()
    arguments = [str(llamacpp_folder()), str(rpc_library()), str(port), str(total_bytes)]
    command = [sys.executable, "-S", str(SERVER), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), "the device listens", lambda: _check_alive(process))
        yield Server(process, f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def rpc_device(total_bytes: int) -> Iterator[Server]:
    """A device that this process's llama.cpp uses, like a GPU, until the end of the block."""
    with serve_device(total_bytes) as server:
        _use([*_used, _functions()[1].ggml_backend_rpc_add_server(server.endpoint.encode())])
        own = _used[-1]
        try:
            yield server
        finally:
            _use([each for each in _used if each != own])


def device_environment(*servers: Server) -> dict[str, str]:
    """The environment of a child process, and of its children, that uses these devices."""
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    endpoints = ",".join(server.endpoint for server in servers)
    return os.environ | {ENDPOINTS: endpoints, LIBRARY: str(rpc_library()), "PYTHONPATH": os.pathsep.join(paths)}


def _use(registries: list[int]) -> None:
    """Make these llama.cpp's RPC devices. It forgets the devices of all servers together, or none."""
    lib, rpc = _functions()
    common = rpc.ggml_backend_rpc_reg()
    for registry in (*_used, *([common] if _used else [])):
        lib.ggml_backend_unload(registry)
    _used[:] = registries
    if registries:
        assert lib.ggml_backend_load(os.fsencode(rpc_library())), "llama.cpp does not load the RPC back end"
    for registry in registries:
        lib.ggml_backend_register(registry)


@functools.cache
def _functions() -> tuple[Any, Any]:
    """llama.cpp's own library and the RPC back end."""
    lib, rpc = library()._lib, ctypes.CDLL(str(rpc_library()))
    lib.ggml_backend_load.argtypes, lib.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    for name in ("ggml_backend_register", "ggml_backend_unload"):
        getattr(lib, name).argtypes, getattr(lib, name).restype = [ctypes.c_void_p], None
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    for name in ("ggml_backend_rpc_add_server", "ggml_backend_rpc_reg"):
        getattr(rpc, name).restype = ctypes.c_void_p
    return lib, rpc


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _check_alive(process: "subprocess.Popen[bytes]") -> None:
    assert process.poll() is None, "the device's process ended"
