"""Read GGUF headers; every count, offset and length is checked against the file before llama.cpp loads it.

Layout (ggml/docs/gguf.md): magic, version, tensor count, key count; key–value pairs; tensor descriptions; padding;
tensor data. Little-endian. llama.cpp itself loads some damaged files without an error and crashes on others.
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.artifacts import is_in_manifest
from gladstone.chat.template import template_sha256
from gladstone.errors import ArtifactError
from gladstone.gguf.architectures import check_architecture
from gladstone.gguf.check_model import DamagedError, ForeignError, Keys, check_shapes, check_sizes, shorten
from gladstone.gguf.check_vocabulary import check_vocabulary
from gladstone.gguf.identify_file import HEAD_BYTES, identify_file, identify_folder
from gladstone.gguf.kinds import identify_kind, reason_not_generative
from gladstone.gguf.parts import describe_raw_part, part_name, why_not_first_part
from gladstone.gguf.types import ALIGNMENT, FILE_TYPES, MAGIC, TENSOR_TYPES, Tensor, ValueType
from gladstone.gguf.values import MAX_ITEMS, Cursor
from gladstone.gguf.versions import check_version, unknown_type

NFC_KEY = "gladstone.tokenizer.composes"  # Gladstone's own key, a bool: the tokenizer normalizes text (NFC)
SPLIT_COUNT, SPLIT_NUMBER = "split.count", "split.no"
MAX_TENSORS, MAX_KEYS, MAX_DIMENSIONS = 1 << 16, 1 << 12, 4
MAX_OTHER_ITEMS = 1 << 16  # of an array outside the vocabulary
MAX_NAME_BYTES, MAX_KEY_BYTES = 63, 65535
MOST_CONTEXT_TOKENS = 1 << 24  # more than any published model has (Llama 4 Scout: 10 million)
POSITION_EMBEDDING = "position_embd.weight"  # (width, positions): learned position embeddings
MOST_PADDING = 4096  # between a part's last tensor and its end


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data."""

    path: Path
    version: int
    metadata: dict[str, Any]
    value_types: dict[str, int]  # type id of each key; for an array that of "array"
    tensors: tuple[Tensor, ...]
    data_offset: int  # bytes from the beginning of the file
    size_bytes: int


@dataclass(frozen=True)
class GgufInfo:
    """Facts about a model file for people to read."""

    path: Path
    parts: tuple[Path, ...]  # all files of a split model, else the one file
    architecture: str
    name: str | None
    parameters: int
    quantisation: str
    size_bytes: int
    context_tokens: int
    vocabulary: int
    tensor_types: dict[str, int]
    template: str | None
    template_sha256: str | None
    claimed_tokens: int = 0  # context by the file's own claim; `context_tokens` is the usable part


class OtherKindError(ArtifactError):
    """A valid GGUF that is not a model: an importance matrix, an adapter, a projector and so on."""


def read_header(path: Path, *, is_model: bool = True) -> GgufHeader:
    """Read and check a GGUF header. Raises ArtifactError that says what the file is instead, or what is wrong with it.

    Without `is_model` (for instance for an importance matrix) no architecture and no vocabulary are required.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ArtifactError(f"{path}: the file is empty, expected a GGUF model.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data[: len(MAGIC)] != MAGIC:
                    raise ArtifactError(
                        f"{path}: expected a GGUF model, this is {identify_file(path, data[:HEAD_BYTES], size)}."
                    )
                return _parse(path, data, is_model=is_model)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None
    except DamagedError as problem:
        part = describe_raw_part(path)
        if part is not None:
            raise ArtifactError(f"{path}: {part}.") from None
        advice = "" if isinstance(problem, ForeignError) else f" {how_to_replace(path)}"
        raise ArtifactError(f"{path}: not a usable GGUF file: {problem}.{advice}") from None


def _check_regular(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise ArtifactError(f"{path}: not a regular file: expected a GGUF model, this is {identify_folder(path)}.")
    if path.is_symlink() and not path.exists():
        raise ArtifactError(f"{path}: no such model file: it is a link to {path.readlink()}, which does not exist.")
    raise ArtifactError(f"{path}: no such model file." if not path.exists() else f"{path}: not a regular file.")


def how_to_replace(path: Path) -> str:
    """How to replace a damaged file: export it again if it was exported here, else download or copy it again."""
    return "Export it again." if is_in_manifest(path) else "Download or copy it again."


def read_model(path: Path) -> tuple[GgufHeader, ...]:
    """Read the headers of a model's file, or of all parts of a split model; the first one has the metadata.

    Raises ArtifactError like `read_header`, if a part is missing, or if `path` is not the first part; UnsupportedError
    for an architecture that the installed llama.cpp does not support.
    """
    first = read_header(path)
    count, number = first.metadata.get(SPLIT_COUNT, 1), first.metadata.get(SPLIT_NUMBER, 0)
    others: tuple[GgufHeader, ...] = ()
    if count > 1:
        wrong = why_not_first_part(path, number, count)
        if wrong is not None:
            raise ArtifactError(f"{path}: {wrong}.")
        stem = path.name[: -len("-00001-of-00001.gguf")]
        paths = (path.with_name(part_name(stem, index, count)) for index in range(2, count + 1))
        others = tuple(read_header(part, is_model=False) for part in paths)
    check_architecture(path, first.metadata["general.architecture"])
    return (first, *others)


def read_generative_model(path: Path) -> tuple[GgufHeader, ...]:
    """Like `read_model`, but raises ArtifactError for a model that does not generate text, such as embedding models."""
    headers = read_model(path)
    why = reason_not_generative(headers[0].metadata, sum(len(header.tensors) for header in headers))
    if why is not None:
        raise ArtifactError(f"{path}: {why}.")
    return headers


def _parse(path: Path, data: mmap.mmap, *, is_model: bool) -> GgufHeader:
    cursor = Cursor(data)
    cursor.take(len(MAGIC), "the magic number")
    version = cursor.scalar("<I", "the version")
    check_version(version)
    tensor_count, key_count = cursor.scalar("<Q", "the tensor count"), cursor.scalar("<Q", "the key count")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise DamagedError(f"it claims {tensor_count:,} tensors and {key_count:,} keys")
    keys = _keys(cursor, key_count)
    is_first = is_model and not _part_number(keys)
    if is_model and (kind := identify_kind(keys.values)):
        raise OtherKindError(f"{path}: {kind.describe(path)}.")
    if is_first and tensor_count and "general.architecture" not in keys.values:
        _check_without_keys(path, cursor, tensor_count)
    if is_first:  # the other parts of a split model have no metadata
        check_sizes(keys)
        check_vocabulary(keys)
    alignment = keys.typed("general.alignment", ValueType.U32)
    alignment = ALIGNMENT if alignment is None else alignment
    if alignment < 8 or alignment & (alignment - 1):
        raise DamagedError(f"alignment {alignment!r} is not a power of two of at least 8")
    tensors = tuple(_tensor(cursor, number) for number in range(tensor_count))
    data_offset = -(-cursor.position // alignment) * alignment
    _check_tensors(tensors, alignment, len(data) - data_offset, data_offset, gaps=not is_model)
    _check_joined(data, data_offset, tensors, keys)
    if is_first:
        check_shapes(keys, tensors)
    return GgufHeader(path, version, keys.values, keys.types, tensors, data_offset, len(data))


def _keys(cursor: Cursor, count: int) -> Keys:
    keys = Keys({}, {}, {})
    for number in range(count):
        key = cursor.text(f"key {number + 1} of {count}", MAX_KEY_BYTES)
        if not key:
            raise DamagedError(f"key {number + 1} of {count} has no name")
        if not key.isprintable():
            raise DamagedError(f"the key {shorten(key)} holds control characters")
        if key in keys.values:
            raise DamagedError(f"the key {shorten(key)} occurs twice")
        what = shorten(key)
        keys.types[key] = kind = cursor.scalar("<I", what)
        most = MAX_ITEMS if key.startswith("tokenizer.") else MAX_OTHER_ITEMS
        keys.values[key], items = cursor.value(kind, what, most)
        if isinstance(keys.values[key], str) and "\0" in keys.values[key]:  # llama.cpp reads up to the zero byte
            raise DamagedError(f"{what} is text that contains a zero byte: {shorten(keys.values[key])}")
        if items is not None:
            keys.items[key] = items
    return keys


def _part_number(keys: Keys) -> int:
    """The number of this part of a split model, from 0. Raises DamagedError for an impossible one."""
    for key in (SPLIT_COUNT, SPLIT_NUMBER):
        keys.typed(key, ValueType.U16)
    count, number = keys.values.get(SPLIT_COUNT, 1), keys.values.get(SPLIT_NUMBER, 0)
    if number and number >= count:
        raise DamagedError(f"it claims to be part {number + 1:,} of {count:,}")
    return int(number)


def _tensor(cursor: Cursor, number: int) -> Tensor:
    what = f"the description of tensor {number + 1}"
    name = cursor.text(what, MAX_NAME_BYTES)
    dimensions = cursor.scalar("<I", what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DamagedError(f"tensor {shorten(name)} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, what))
    kind, offset = cursor.scalar("<I", what), cursor.scalar("<Q", what)
    if not name.isprintable():
        raise DamagedError(f"tensor {number + 1} has control characters in its name, {shorten(name)}")
    if kind not in TENSOR_TYPES:
        raise unknown_type(name, kind)
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if 0 in shape or shape[0] % block:
        raise DamagedError(f"tensor {name!r} of type {type_name} has the impossible shape {shape}")
    return Tensor(name, shape, type_name, offset, math.prod(shape) // block * block_bytes)


def _check_tensors(
    tensors: tuple[Tensor, ...], alignment: int, data_bytes: int, data_offset: int, *, gaps: bool
) -> None:
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise DamagedError(f"tensor {twice[0]!r} occurs twice")
    expected = 0  # llama.cpp requires a model's tensors without gaps
    for tensor in tensors:
        end = tensor.offset + tensor.size_bytes
        if end > data_bytes:
            least = data_offset + max(other.offset + other.size_bytes for other in tensors)
            raise DamagedError(
                f"tensor {tensor.name!r} ends {end - data_bytes:,} bytes after the file's end: the file is cut short, "
                f"it has {max(0, data_offset + data_bytes):,} of {least:,} bytes"
            )
        if tensor.offset % alignment or tensor.offset < expected or (tensor.offset > expected and not gaps):
            raise DamagedError(
                f"tensor {tensor.name!r} starts at the impossible offset {tensor.offset:,}, expected {expected:,}"
            )
        expected = -(-end // alignment) * alignment


def _check_joined(data: mmap.mmap, data_offset: int, tensors: tuple[Tensor, ...], keys: Keys) -> None:
    """Raise DamagedError for parts of a split model joined as raw bytes: llama.cpp would read only the first."""
    count = keys.values.get(SPLIT_COUNT, 1)
    end = data_offset + max((tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    if count > 1 and MAGIC in data[end : end + MOST_PADDING]:
        raise ForeignError(
            f"{count} parts of a split model joined by `cat`, each with its own header. Keep the parts as they were "
            "and give the first, or join them with llama.cpp's `llama-gguf-split --merge`"
        )


def _check_without_keys(path: Path, cursor: Cursor, tensor_count: int) -> None:
    """Raise OtherKindError for a file of stable-diffusion.cpp, which may have no keys at all."""
    begin = cursor.position
    names = [_tensor(cursor, number).name for number in range(min(tensor_count, 64))]
    cursor.position = begin
    if kind := identify_kind({}, names):
        raise OtherKindError(f"{path}: {kind.describe(path)}.")


def read_info(path: Path) -> GgufInfo:
    """Read the facts about a model file that `runtime info` shows. Raises the errors of `read_model`."""
    return summarize_model(read_model(path))


def usable_context(headers: Sequence[GgufHeader]) -> int:
    """The usable context in tokens: the file's claim, limited by learned positions and by what is plausible.

    llama.cpp reads a claim of 2³¹ or more as a negative number.
    """
    metadata = headers[0].metadata
    claimed = int(metadata.get(f"{metadata['general.architecture']}.context_length", 0))
    learned = next(
        (tensor.shape[-1] for header in headers for tensor in header.tensors if tensor.name == POSITION_EMBEDDING),
        claimed,
    )
    return min(claimed, learned, MOST_CONTEXT_TOKENS)


def summarize_model(headers: Sequence[GgufHeader]) -> GgufInfo:
    """The same facts as `read_info`, from headers that the caller has read."""
    path, metadata = headers[0].path, headers[0].metadata
    architecture = metadata["general.architecture"]
    template = metadata.get("tokenizer.chat_template")
    tensors = [tensor for header in headers for tensor in header.tensors]
    types = Counter(tensor.type_name for tensor in tensors)
    file_type, name = metadata.get("general.file_type"), metadata.get("general.name")
    return GgufInfo(
        path=path,
        architecture=architecture,
        name=name if isinstance(name, str) else None,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        quantisation=FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        size_bytes=sum(header.size_bytes for header in headers),
        parts=tuple(header.path for header in headers),
        context_tokens=usable_context(headers),
        claimed_tokens=metadata.get(f"{architecture}.context_length", 0),
        vocabulary=len(metadata.get("tokenizer.ggml.tokens", ())),
        tensor_types=dict(types.most_common()),
        template=template if isinstance(template, str) else None,
        template_sha256=template_sha256(template) if isinstance(template, str) else None,
    )
