"""Imported by Python at the start of a test's child process: the devices of `tests.device.rpc_device` for llama.cpp.

They are registered as soon as `llama_cpp.llama_cpp` is imported, before any model is loaded.
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType

NAME = "llama_cpp.llama_cpp"


class Loader(importlib.abc.Loader):
    """Runs the module, then gives it the devices."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        path = os.environ["TEST_DEVICE_LIBRARY"]
        lib = module._lib
        lib.ggml_backend_load.argtypes, lib.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
        lib.ggml_backend_load(path.encode())
        rpc = ctypes.CDLL(path)
        rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        lib.ggml_backend_register.argtypes = [ctypes.c_void_p]
        for endpoint in os.environ["TEST_DEVICES"].split(","):
            lib.ggml_backend_register(rpc.ggml_backend_rpc_add_server(endpoint.encode()))


class Finder(importlib.abc.MetaPathFinder):
    """Finds llama.cpp's module once, and leaves."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


if "TEST_DEVICES" in os.environ:
    sys.meta_path.insert(0, Finder())
