"""Reads and writes tensors of safetensors files one at a time. Names torch.

The format: 8 bytes length, a JSON header of that length, the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gladstone import file_names
from gladstone.artifacts import atomic_file
from gladstone.errors import ArtifactError

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # per element; 1 for other dtypes
HEADER_LIMIT = 100_000_000  # bytes, the limit of the reference reader


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor to write."""

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Length of the tensor's bytes."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class StoredTensor(TensorSpec):
    """A tensor in a file."""

    path: Path
    offset: int  # bytes from the file's beginning

    def read(self) -> Any:
        """The tensor, in its stored shape and dtype. Raises ArtifactError if the file was truncated meanwhile."""
        import torch

        if not self.size_bytes:
            return torch.empty(self.shape, dtype=getattr(torch, DTYPES[self.dtype]))
        buffer = bytearray(self.size_bytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view = memoryview(buffer)
            while view and (count := file.readinto(view)):
                view = view[count:]
        if view:
            raise ArtifactError(f"{self.path}: {self.name} is cut short: the file has changed while it was read.")
        return torch.frombuffer(buffer, dtype=getattr(torch, DTYPES[self.dtype])).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Raises ArtifactError if the file is damaged or another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_LIMIT):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        tensors = {
            name: _stored(path, name, each, 8 + length, size) for name, each in header.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: no safetensors file, or damaged: {error}.") from None
    return tensors


def _stored(path: Path, name: str, entry: Mapping[str, Any], begin: int, size: int) -> StoredTensor:
    shape = tuple(int(each) for each in entry["shape"])
    stored = StoredTensor(name, str(entry["dtype"]), shape, path, begin + int(entry["data_offsets"][0]))
    end = begin + int(entry["data_offsets"][1])
    if stored.dtype not in DTYPES:
        raise ValueError(f"{name} is of type {stored.dtype}")
    if min(shape, default=0) < 0 or stored.offset < begin or end > size or end - stored.offset != stored.size_bytes:
        raise ValueError(f"{name} does not lie in the file")
    return stored


def plan_shards(tensors: Iterable[TensorSpec], limit_bytes: int) -> dict[str, list[TensorSpec]]:
    """Assign tensors to files of at most `limit_bytes`; a larger tensor gets a file of its own."""
    shards: list[list[TensorSpec]] = [[]]
    room = limit_bytes
    for tensor in tensors:
        if shards[-1] and tensor.size_bytes > room:
            shards.append([])
            room = limit_bytes
        shards[-1].append(tensor)
        room -= tensor.size_bytes
    if len(shards) == 1:
        return {file_names.WEIGHTS: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": each for number, each in enumerate(shards, 1)}


@contextmanager
def writing(path: Path, tensors: Iterable[TensorSpec]) -> Iterator["ShardWriter"]:
    """Write a safetensors file that appears once all its tensors are written."""
    planned = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in planned:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at + tensor.size_bytes],
        }
        at += tensor.size_bytes
    encoded = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin aligned
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        writer = ShardWriter(file, planned)
        yield writer
        if writer.left:
            raise ArtifactError(f"{path}: {writer.left[0].name} was not written.")


class ShardWriter:
    """Writes the planned tensors in order."""

    def __init__(self, file: IO[bytes], planned: list[TensorSpec]) -> None:
        self._file, self.left = file, list(planned)

    def write(self, tensor: Any) -> None:
        """Write the next tensor, cast to its planned dtype. Raises ArtifactError for another shape."""
        import torch

        planned = self.left.pop(0)
        kept = tensor.to(getattr(torch, DTYPES[planned.dtype])).contiguous()
        if tuple(kept.shape) != planned.shape:
            raise ArtifactError(f"{planned.name}: shape {tuple(kept.shape)}, planned {planned.shape}.")
        if kept.numel():
            self._file.write(memoryview(kept.flatten().view(torch.uint8).numpy()))
