"""Reads tensors of PyTorch files (.bin) one at a time, without running code from them. Names torch."""

import pickle
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from export.tensors.safetensors_io import DTYPES, StoredTensor
from gladstone.errors import ArtifactError


@dataclass(frozen=True)
class Pickled(StoredTensor):
    """A tensor in a pickle, memory-mapped if the file's format allows."""

    def read(self) -> Any:
        """The tensor. Raises ArtifactError if the file can no longer be read."""
        return _load(self.path, self.path.stat().st_mtime_ns)[self.name].detach().contiguous()


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a .bin file by name.

    Raises ArtifactError for a file that is damaged, holds something else, or would run code when it is loaded.
    """
    try:
        found = _load(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}.") from None
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names or tensor.layout != _strided():
            raise ArtifactError(f"{path}: {name} is of type {tensor.dtype}, expected plain numbers.")
        tensors[str(name)] = Pickled(str(name), names[dtype], tuple(tensor.shape), path, 0)
    return tensors


@lru_cache(maxsize=2)
def _load(path: Path, _changed_ns: int) -> dict[str, Any]:
    """The file's tensors by name, memory-mapped; files in PyTorch's older format are read into memory."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            found = _mapped(path)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise ArtifactError(f"{path}: damaged, or no weights that can be read without running code.") from None
        raise ArtifactError(
            f"{path}: loading it would run code ({code[1]}), which is refused. Save the weights as safetensors on the "
            "machine that made the file."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: no file of torch's, or damaged ({type(error).__name__}).") from None
    if not isinstance(found, dict) or not found or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise ArtifactError(f"{path}: holds no tensors by name, as a model's or an adapter's weights are saved.")
    return found


def _mapped(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _strided() -> Any:
    import torch

    return torch.strided
