"""Write tiny GGUF files that are valid by default and whose every part can be damaged."""

import struct
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


@dataclass(frozen=True)
class Array:
    """An array value; `count` overrides the number of values that it claims."""

    kind: int
    values: list[Any]
    count: int | None = None


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's description; the sizes are those of the file, whatever they should be."""

    name: str = "token_embd.weight"
    shape: tuple[int, ...] = (32, 4)
    kind: int = 0
    offset: int = 0


def vocabulary(tokens: list[str]) -> list[tuple[str, int, Any]]:
    """Keys of a vocabulary, as the converter writes them."""
    return [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, list(tokens))),
        ("tokenizer.ggml.token_type", ARRAY, Array(I32, [1] * len(tokens))),
        ("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * len(tokens))),
        ("tokenizer.ggml.bos_token_id", U32, 0),
        ("tokenizer.ggml.eos_token_id", U32, 1),
    ]


def default_keys() -> list[tuple[str, int, Any]]:
    """Name, value kind and value of every key."""
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "Tiny"),
        ("general.file_type", U32, 7),
        ("llama.context_length", U32, 128),
        ("tokenizer.chat_template", STRING, "{{ messages[0].content }}"),
        *vocabulary(["<s>", "</s>", "a", "b"]),
    ]


@dataclass
class Gguf:
    """What the file holds; `tensors` says what it claims, `data` what is there."""

    keys: list[tuple[str, int, Any]] = field(default_factory=default_keys)
    tensors: list[TensorEntry] = field(
        default_factory=lambda: [TensorEntry(), TensorEntry("output_norm.weight", (32,), 0, 512)]
    )
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32
    data: bytes = bytes(512 + 128)

    def set(self, key: str, kind: int, value: Any) -> None:
        """Replace a key, or add it."""
        self.keys = [entry for entry in self.keys if entry[0] != key] + [(key, kind, value)]

    def sections(self) -> list[bytes]:
        """The file in pieces: each number, each key's name, kind and value, each tensor's parts, padding, data."""
        counts = (len(self.tensors), self.tensor_count), (len(self.keys), self.key_count)
        pieces = [self.magic, struct.pack("<I", self.version)]
        pieces += [struct.pack("<Q", real if claimed is None else claimed) for real, claimed in counts]
        for key, kind, value in self.keys:
            pieces += [_text(key), struct.pack("<I", kind), _value(kind, value)]
        for tensor in self.tensors:
            pieces += [_text(tensor.name), struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)]
            pieces += [struct.pack("<I", tensor.kind), struct.pack("<Q", tensor.offset)]
        size = sum(map(len, pieces))
        return [*pieces, bytes(-size % self.alignment), self.data]

    def content(self) -> bytes:
        """The whole file."""
        return b"".join(self.sections())


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes):  # damage, as it is
        return value
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        count = len(value.values) if value.count is None else value.count
        return struct.pack("<IQ", value.kind, count) + b"".join(_value(value.kind, each) for each in value.values)
    return struct.pack(f"<{CODES[kind]}", value)
