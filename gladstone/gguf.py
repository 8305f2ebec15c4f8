"""GGUF headers, read with every count, offset and length checked against the file before llama.cpp sees it.

Layout (ggml/docs/gguf.md): magic, version, tensor count, key count; key–value pairs; tensor descriptions; padding;
tensor data. Little-endian. llama.cpp itself loads some damaged files without a word and aborts the process on others.
"""

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError
from gladstone.gguf_values import MAX_ITEMS, Cursor
from gladstone.soundness import U32, DamagedError, Keys, check_shapes, check_sizes, quoted
from gladstone.template import template_sha256
from gladstone.vocabulary import check_vocabulary

COMPOSES = "gladstone.tokenizer.composes"  # a bool of our own: characters are composed (NFC) before a text is split
MAGIC = b"GGUF"
SPLIT_COUNT, SPLIT_NUMBER, U16 = "split.count", "split.no", 2
MAX_TENSORS, MAX_KEYS, MAX_DIMENSIONS = 1 << 16, 1 << 12, 4
MAX_OTHER_ITEMS = 1 << 16  # of an array that is no part of the vocabulary
MAX_NAME_BYTES, MAX_KEY_BYTES = 63, 65535

# type id: (name, weights per block, bytes per block), from ggml.h and ggml-common.h
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# general.file_type, llama.h's llama_ftype; the types a user meets
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Description of one tensor; `shape` has the fastest dimension first, `offset` counts from the data section."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data."""

    path: Path
    version: int
    metadata: dict[str, Any]
    value_types: dict[str, int]  # of each key, as the format numbers them; an array's is that of an array
    tensors: tuple[Tensor, ...]
    data_offset: int  # bytes from the file's beginning
    size_bytes: int


@dataclass(frozen=True)
class GgufInfo:
    """What a person asks of a model file."""

    path: Path
    parts: tuple[Path, ...]  # all files of a model that was split, else the one
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


def read_header(path: Path, *, is_model: bool = True) -> GgufHeader:
    """Read and check a GGUF header. Raises ArtifactError that says what the file is instead, or what is wrong in it.

    A file that holds no model, as an importance matrix, is not asked for an architecture and a sound vocabulary.
    """
    try:
        if not path.is_file():
            raise ArtifactError(f"{path}: no such model file." if not path.exists() else f"{path}: not a regular file.")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ArtifactError(f"{path}: the file is empty, expected a GGUF model.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check_kind(path, data[:512])
                return _parse(path, data, is_model=is_model)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None
    except DamagedError as problem:
        raise ArtifactError(f"{path}: not a usable GGUF file: {problem}. Export or copy it again.") from None


def read_model(path: Path) -> tuple[GgufHeader, ...]:
    """The headers of a model's file, or of all its parts if it was split; the first one has the metadata.

    Raises ArtifactError as `read_header` does, or if a part is missing, or `path` is not the first one.
    """
    first = read_header(path)
    count, number = first.metadata.get(SPLIT_COUNT, 1), first.metadata.get(SPLIT_NUMBER, 0)
    if count <= 1:
        return (first,)
    named = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if named is None or int(named[3]) != count:
        raise ArtifactError(
            f"{path}: one of {count} parts, but not called …-00001-of-{count:05}.gguf as llama.cpp needs."
        )
    if number != 0:
        raise ArtifactError(f"{path}: part {number + 1} of {count}; give the first, {part_name(named[1], 1, count)}.")
    others = (path.with_name(part_name(named[1], each, count)) for each in range(2, count + 1))
    return (first, *(read_header(part, is_model=False) for part in others))


def part_name(stem: str, number: int, count: int) -> str:
    """The name of a part, from 1, of a model that was split, as llama.cpp looks for it."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def _check_kind(path: Path, head: bytes) -> None:
    if head.startswith(MAGIC):
        return
    known = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"\x80\x02": "a Python pickle"}
    kind = next((name for magic, name in known.items() if head.startswith(magic)), None)
    if kind is None:
        kind = "a text file" if _looks_like_text(head) else "not one (its first bytes are not 'GGUF')"
    raise ArtifactError(f"{path}: expected a GGUF model, this is {kind}.")


def _looks_like_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut at the end of the sample is still text
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _parse(path: Path, data: mmap.mmap, *, is_model: bool) -> GgufHeader:
    cursor = Cursor(data)
    cursor.take(len(MAGIC), "the magic number")
    version = cursor.scalar("<I", "the version")
    if version not in (2, 3):
        raise DamagedError(f"version {version}; versions 2 and 3 (little-endian) are supported")
    tensor_count, key_count = cursor.scalar("<Q", "the tensor count"), cursor.scalar("<Q", "the key count")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise DamagedError(f"it claims {tensor_count:,} tensors and {key_count:,} keys")
    keys = _keys(cursor, key_count)
    is_first = is_model and not _part_number(keys)
    if is_first:  # of a model that was split the others have no metadata
        check_sizes(keys)
        check_vocabulary(keys)
    alignment = keys.typed("general.alignment", U32)
    alignment = 32 if alignment is None else alignment
    if alignment < 8 or alignment & (alignment - 1):
        raise DamagedError(f"alignment {alignment!r} is no power of two of at least 8")
    tensors = tuple(_tensor(cursor, number) for number in range(tensor_count))
    data_offset = -(-cursor.position // alignment) * alignment
    _check_tensors(tensors, alignment, len(data) - data_offset, gaps=not is_model)
    if is_first:
        check_shapes(keys, tensors)
    return GgufHeader(path, version, keys.values, keys.types, tensors, data_offset, len(data))


def _keys(cursor: Cursor, count: int) -> Keys:
    keys = Keys({}, {}, {})
    for number in range(count):
        key = cursor.text(f"key {number + 1} of {count}", MAX_KEY_BYTES)
        if not key:
            raise DamagedError(f"key {number + 1} of {count} has no name")
        if key in keys.values:
            raise DamagedError(f"the key {quoted(key)} is there twice")
        what = quoted(key)
        keys.types[key] = kind = cursor.scalar("<I", what)
        most = MAX_ITEMS if key.startswith("tokenizer.") else MAX_OTHER_ITEMS
        keys.values[key], items = cursor.value(kind, what, most)
        if items is not None:
            keys.items[key] = items
    return keys


def _part_number(keys: Keys) -> int:
    """Which part of a model this is, from 0."""
    for key in (SPLIT_COUNT, SPLIT_NUMBER):
        keys.typed(key, U16)
    count, number = keys.values.get(SPLIT_COUNT, 1), keys.values.get(SPLIT_NUMBER, 0)
    if number and number >= count:
        raise DamagedError(f"it claims to be part {number + 1:,} of {count:,}")
    return int(number)


def _tensor(cursor: Cursor, number: int) -> Tensor:
    what = f"the description of tensor {number + 1}"
    name = cursor.text(what, MAX_NAME_BYTES)
    dimensions = cursor.scalar("<I", what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DamagedError(f"tensor {quoted(name)} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, what))
    kind, offset = cursor.scalar("<I", what), cursor.scalar("<Q", what)
    if kind not in TENSOR_TYPES:
        raise DamagedError(f"tensor {name!r} has the unknown type {kind}")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if 0 in shape or shape[0] % block:
        raise DamagedError(f"tensor {name!r} of type {type_name} has the impossible shape {shape}")
    return Tensor(name, shape, type_name, offset, math.prod(shape) // block * block_bytes)


def _check_tensors(tensors: tuple[Tensor, ...], alignment: int, data_bytes: int, *, gaps: bool) -> None:
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise DamagedError(f"tensor {twice[0]!r} is there twice")
    expected = 0  # llama.cpp takes a model's one right behind the other only
    for tensor in tensors:
        end = tensor.offset + tensor.size_bytes
        if end > data_bytes:
            raise DamagedError(
                f"tensor {tensor.name!r} ends {end - data_bytes:,} bytes after the file's end: the file is cut short"
            )
        if tensor.offset % alignment or tensor.offset < expected or (tensor.offset > expected and not gaps):
            raise DamagedError(
                f"tensor {tensor.name!r} starts at the impossible offset {tensor.offset:,}, expected {expected:,}"
            )
        expected = -(-end // alignment) * alignment


def read_info(path: Path) -> GgufInfo:
    """The facts about a model file that `runtime info` shows. Raises ArtifactError as `read_header` does."""
    return info_of(read_model(path))


def info_of(headers: Sequence[GgufHeader]) -> GgufInfo:
    """The same of headers that were read already."""
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
        context_tokens=metadata.get(f"{architecture}.context_length", 0),
        vocabulary=len(metadata.get("tokenizer.ggml.tokens", ())),
        tensor_types=dict(types.most_common()),
        template=template if isinstance(template, str) else None,
        template_sha256=template_sha256(template) if isinstance(template, str) else None,
    )
