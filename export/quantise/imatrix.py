"""Importance matrices: the mean square of each weight column's input on a calibration text.

The file format is llama.cpp's (a GGUF with `NAME.in_sum2` and `NAME.counts` for each weight), readable by its tools.
"""

import hashlib
import random
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.convert.llamacpp_converter import converter_folder
from gladstone.artifacts import atomic_file
from gladstone.chat.messages import Conversation
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, DataError, UnsupportedError
from gladstone.gguf.header import GgufHeader, read_header
from gladstone.gguf.identify_file import HEAD_BYTES, is_old_imatrix
from gladstone.gguf.kinds import identify_kind
from gladstone.gguf.types import MAGIC, Tensor
from gladstone.process.child import ChildOptions, run_child

CHUNK_TOKENS = 512
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Calibration:
    """The calibration text of an importance matrix."""

    name: str
    text: str
    chunks: int  # at most; of CHUNK_TOKENS tokens each

    @property
    def sha256(self) -> str:
        """Hash of the text and the number of chunks."""
        return hashlib.sha256(f"{self.chunks}\0{self.text}".encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Imatrix:
    """Mean square of the inputs to each weight, float32 (columns × experts,)."""

    weights: dict[str, npt.NDArray[np.float32]]
    chunks: int


def calibration(name: str, rows: Sequence[Conversation], template: ChatTemplate, end: str, chunks: int) -> Calibration:
    """Rows as in training: rendered with the template, plain texts with their end token; in a fixed random order."""
    order = list(rows)
    random.Random(0).shuffle(order)  # noqa: S311 - the first chunks are to hold every source, no secret
    texts = (
        row.answer.content + end if row.is_text else template.render(row.messages, tools=row.tools) for row in order
    )
    return Calibration(name, "".join(texts), chunks)


def compute_imatrix(model: Path, text: Calibration, out: Path, progress: Progress) -> None:
    """Write the importance matrix of an F16 GGUF to `out`, whole or not at all.

    Raises UnsupportedError for a text shorter than a chunk, ToolError if llama.cpp fails.
    """
    folder = converter_folder(progress)
    with step(progress, f"Importance matrix from {text.name}"), atomic_file(out) as partial:
        job = {"model": str(model), "out": str(partial), "text": text.text, "name": text.name, "chunks": text.chunks}
        job |= {"chunk_tokens": CHUNK_TOKENS}
        options = ChildOptions(python_path=[folder / "gguf-py"])
        run_child("export.quantise.imatrix_child", job, "computing the importance matrix", options, progress)


def read_text(path: Path) -> str:
    """Read a calibration text. Raises DataError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8.") from None


def is_imatrix(path: Path) -> bool:
    """True for a GGUF or the older binary format of llama-imatrix. Raises ArtifactError if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None
    return head.startswith(MAGIC) or is_old_imatrix(head)


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix. Raises ArtifactError if it is damaged or another kind of file."""
    with path.open("rb") as file:
        if is_old_imatrix(file.read(HEAD_BYTES)):
            return _read_old(path)
    header = read_header(path, is_model=False)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if header.metadata.get("general.type") != "imatrix":
        kind = identify_kind(header.metadata, tensors)
        raise ArtifactError(f"{path}: a GGUF, but not an importance matrix: it is {kind.noun if kind else 'a model'}.")
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, tensor in tensors.items():
        if name.endswith(SUMS):
            weight = name.removesuffix(SUMS)
            counts = tensors.get(weight + COUNTS)
            if counts is None:
                raise ArtifactError(f"{path}: has {name} without {weight + COUNTS}.")
            weights[weight] = _means(header, tensor, counts)
    if not weights:
        raise ArtifactError(f"{path}: an importance matrix without entries.")
    return Imatrix(weights, int(header.metadata.get("imatrix.chunk_count", 0)))


def _read_old(path: Path) -> Imatrix:
    """Read the older binary format: a count, then for each weight its name, number of calls, and sums.

    llama-quantize divides the sums by the calls.
    """
    data = path.read_bytes()
    weights: dict[str, npt.NDArray[np.float32]] = {}
    try:
        (count,), position = struct.unpack_from("<i", data), 4
        for _ in range(count):
            (length,) = struct.unpack_from("<i", data, position)
            name = data[position + 4 : position + 4 + length].decode("utf-8")
            calls, columns = struct.unpack_from("<ii", data, position + 4 + length)
            position += 12 + length
            sums = np.frombuffer(data, "<f4", columns, position)
            position += 4 * columns
            weights[name] = (sums / max(calls, 1)).astype(np.float32)
        chunks = struct.unpack_from("<i", data, position)[0] if position + 4 <= len(data) else 0
    except (struct.error, ValueError) as error:
        raise ArtifactError(f"{path}: a truncated or damaged importance matrix ({error}).") from None
    for name, means in weights.items():
        if not np.isfinite(means).all() or (means < 0).any():
            raise ArtifactError(f"{path}: {name} contains values that are not a mean of squares.")
    return Imatrix(weights, chunks)


def _means(header: GgufHeader, sums: Tensor, counts: Tensor) -> npt.NDArray[np.float32]:
    total, count = _values(header, sums), _values(header, counts)
    if not count.size or total.size % count.size:
        raise ArtifactError(f"{header.path}: {sums.name} and {counts.name} have sizes that do not match.")
    total = total.reshape(count.size, -1)
    # an expert without tokens has no means; llama-quantize also weighs its columns equally
    means = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], 1).astype(np.float32).ravel()
    if not np.isfinite(means).all() or (means < 0).any():
        raise ArtifactError(f"{header.path}: {sums.name} contains values that are not a mean of squares.")
    return means


def _values(header: GgufHeader, tensor: Tensor) -> npt.NDArray[np.float32]:
    if tensor.type_name != "F32":
        raise ArtifactError(f"{header.path}: {tensor.name} is {tensor.type_name}, expected F32.")
    count = tensor.size_bytes // 4
    return np.fromfile(header.path, dtype="<f4", count=count, offset=header.data_offset + tensor.offset)


def check_fits(matrix: Imatrix, model: GgufHeader, path: Path) -> None:
    """Raises UnsupportedError for an importance matrix of another model."""
    columns = {
        tensor.name: tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1) for tensor in model.tensors
    }
    wrong = [name for name, weights in matrix.weights.items() if columns.get(name) != weights.size]
    if wrong:
        name = wrong[0]
        there = f"{columns[name]:,} columns" if name in columns else "no such tensor"
        raise UnsupportedError(
            f"{path}: not of this model: {name} has {matrix.weights[name].size:,} entries there, the model has {there}."
        )
    lacking = _layers(columns) - _layers(matrix.weights) - _prediction_layers(model)
    if lacking:
        raise UnsupportedError(
            f"{path}: not of this model: it knows {len(_layers(matrix.weights)):,} layers, the model has "
            f"{len(_layers(columns)):,}."
        )


def _layers(names: Iterable[str]) -> set[int]:
    return {int(found[1]) for found in (re.match(r"blk\.(\d+)\.", name) for name in names) if found}


def _prediction_layers(model: GgufHeader) -> set[int]:
    """Multi-token prediction layers at the end of a model: no text passes through them."""
    architecture = model.metadata["general.architecture"]
    count = int(model.metadata.get(f"{architecture}.nextn_predict_layers", 0))
    layers = int(model.metadata.get(f"{architecture}.block_count", 0))
    return set(range(layers - count, layers))
