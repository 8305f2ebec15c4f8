"""Check a model's sizes and shapes in a GGUF header, for values that crash llama.cpp or that it silently gets wrong.

A failed assertion in llama.cpp ends the whole process. The limits come from its llama-hparams.h and llama-model.cpp.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gladstone.gguf.types import Pooling, Tensor, ValueType

MAX_LAYERS, MAX_EXPERTS = 512, 1024
MAX_SHOWN = 50  # characters or items of a value in a message
MAX_WIDTH, MAX_UNITS, MAX_HEADS, MAX_COUNT = 1 << 20, 1 << 24, 1 << 14, (1 << 32) - 1
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = (Pooling.NONE, Pooling.MEAN, Pooling.CLS, Pooling.LAST, Pooling.RANK, MAX_COUNT)  # the last: unspecified

# integer keys of an architecture: minimum and maximum; those that vary by layer may be lists
SIZES = {
    "context_length": (1, MAX_COUNT), "embedding_length": (1, MAX_WIDTH), "block_count": (1, MAX_LAYERS),
    "decoder_block_count": (1, MAX_LAYERS), "vocab_size": (1, MAX_UNITS), "embedding_length_out": (1, MAX_WIDTH),
    "attention.key_length": (0, MAX_UNITS), "attention.value_length": (0, MAX_UNITS),
    "attention.key_length_swa": (0, MAX_UNITS), "attention.value_length_swa": (0, MAX_UNITS),
    "rope.dimension_count": (0, MAX_UNITS), "rope.dimension_count_swa": (0, MAX_UNITS),
    "rope.scaling.original_context_length": (0, MAX_COUNT), "attention.relative_buckets_count": (2, 1 << 16),
    "leading_dense_block_count": (0, MAX_LAYERS), "expert_shared_count": (0, MAX_EXPERTS),
    "ssm.conv_kernel": (0, 1 << 16), "ssm.state_size": (0, MAX_UNITS), "ssm.inner_size": (0, MAX_UNITS),
    "ssm.time_step_rank": (0, MAX_UNITS), "ssm.group_count": (0, MAX_UNITS), "wkv.head_size": (1, MAX_UNITS),
}  # fmt: skip
SIZES_BY_LAYER = {
    "feed_forward_length": (0, MAX_UNITS), "attention.head_count": (0, MAX_HEADS),
    "attention.head_count_kv": (0, MAX_HEADS), "expert_used_count": (0, MAX_EXPERTS),
    "expert_feed_forward_length": (0, MAX_UNITS),
}  # fmt: skip
POSITIVE = ("rope.freq_base", "rope.freq_base_swa")
BOOLEANS = ("attention.causal", "use_parallel_residual", "expert_weights_norm", "rope.scaling.finetuned")
# architectures whose token embedding has another width than the layers, or belongs to another model
OWN_EMBEDDING = ("wavtokenizer-dec", "eagle3", "dflash")


class DamagedError(Exception):
    """The header contradicts the file or itself; `read_header` catches this and adds the path."""


class ForeignError(DamagedError):
    """The file may be intact but is meant for another program; the message says what to do instead of a new copy."""


def shorten(value: object) -> str:
    """A value of the file, shortened to one line for a message."""
    is_long = isinstance(value, str | list) and len(value) > MAX_SHOWN
    text = repr(value[:MAX_SHOWN] if is_long else value)  # type: ignore[index]
    return f"{text[: 2 * MAX_SHOWN]}…" if is_long or len(text) > 2 * MAX_SHOWN else text


def _name(kind: int) -> str:
    """A type of values in a message."""
    return ValueType(kind).name.lower()


@dataclass(frozen=True)
class Keys:
    """The keys of a header: their values, the type ids of the values, and for arrays those of the items."""

    values: dict[str, Any]
    types: dict[str, int]
    items: dict[str, int]

    def typed(self, key: str, kind: int, items: tuple[int, ...] = ()) -> Any:
        """Return a key's value, None if it is missing. Raises DamagedError if it or its items have another type."""
        if key not in self.values:
            return None
        if self.types[key] != kind or (kind == ValueType.ARRAY and self.items[key] not in items):
            type_name = _name(self.types[key])
            type_name = f"{_name(self.items[key])} {type_name}" if key in self.items else type_name
            wanted = " or ".join(_name(item) for item in items) + " array" if items else _name(kind)
            raise DamagedError(f"{key} is {shorten(self.values[key])}, of the type {type_name}, expected {wanted}")
        return self.values[key]


def check_sizes(keys: Keys) -> None:
    """Raise DamagedError for sizes that no model can have or that contradict each other."""
    architecture = keys.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise DamagedError("it does not name an architecture")
    for name in ("general.name", "general.type"):
        keys.typed(name, ValueType.STRING)
    sizes = Sizes(keys, architecture)
    for name, (least, most) in SIZES.items():
        sizes.number(name, least, most)
    for name, (least, most) in SIZES_BY_LAYER.items():
        sizes.by_layer(name, least, most)
    for name in BOOLEANS:
        keys.typed(f"{architecture}.{name}", ValueType.BOOL)
    sizes.number("nextn_predict_layers", 0, sizes.layers)
    _check_fractions(keys, architecture)
    _check_choices(keys, architecture)
    _check_experts(sizes)
    _check_heads(sizes)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model, by their key names without the architecture's prefix."""

    keys: Keys
    architecture: str

    @property
    def layers(self) -> int:
        """Number of layers; the maximum if the file does not say."""
        return int(self.keys.values.get(f"{self.architecture}.block_count", MAX_LAYERS))

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return an integer, None if it is missing. Raises DamagedError if it is not one or out of range."""
        key = f"{self.architecture}.{name}"
        value = self.keys.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or not least <= value <= most:
            raise DamagedError(f"{key} is {shorten(value)}, expected a number from {least:,} to {most:,}")
        self.keys.typed(key, ValueType.U32)
        return value

    def by_layer(self, name: str, least: int, most: int) -> list[int]:
        """Return the value for each layer, [] if it is missing. Raises DamagedError like `number`."""
        key = f"{self.architecture}.{name}"
        value = self.keys.values.get(key)
        if not isinstance(value, list):
            number = self.number(name, least, most)
            return [] if number is None else [number] * min(self.layers, MAX_LAYERS)
        self.keys.typed(key, ValueType.ARRAY, (ValueType.U32, ValueType.I32))
        if len(value) != self.layers and f"{self.architecture}.block_count" in self.keys.values:
            raise DamagedError(f"{key} has {len(value):,} entries for {self.layers:,} layers")
        wrong = next((number for number in value if not least <= number <= most), None)
        if wrong is not None:
            raise DamagedError(f"{key} holds {wrong:,}, expected numbers from {least:,} to {most:,}")
        return value


def _check_fractions(keys: Keys, architecture: str) -> None:
    for key, value in keys.values.items():
        if not key.startswith(f"{architecture}."):
            continue
        is_epsilon = key.endswith("_epsilon")
        if is_epsilon and not (isinstance(value, float) and math.isfinite(value) and value >= 0):
            raise DamagedError(f"{key} is {shorten(value)}, expected a small positive number")
        if isinstance(value, float) and not math.isfinite(value):
            raise DamagedError(f"{key} is {value}, expected a finite number")
    for name in POSITIVE:
        value = keys.typed(f"{architecture}.{name}", ValueType.F32)
        if value is not None and value <= 0:
            raise DamagedError(f"{architecture}.{name} is {value}, expected a positive number")


def _check_choices(keys: Keys, architecture: str) -> None:
    scaling = keys.values.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise DamagedError(
            f"{architecture}.rope.scaling.type is {shorten(scaling)}, expected {', '.join(ROPE_SCALINGS)}"
        )
    factor = keys.values.get(f"{architecture}.rope.scaling.factor", 1.0)
    if not isinstance(factor, float) or factor < 0:
        raise DamagedError(f"{architecture}.rope.scaling.factor is {shorten(factor)}, expected a positive number")
    for name in ("pooling_type", "classifier.pooling_type"):
        pooling = keys.typed(f"{architecture}.{name}", ValueType.U32)
        if pooling is not None and pooling not in POOLINGS:
            raise DamagedError(f"{architecture}.{name} is {pooling:,}, expected a number from 0 to 4")


def _check_experts(sizes: Sizes) -> None:
    """Check what llama.cpp's `load_hparams` asserts."""
    count = sizes.number("expert_count", 0, MAX_COUNT) or 0
    most = max(sizes.by_layer("expert_used_count", 0, MAX_EXPERTS), default=0)
    if count > MAX_EXPERTS or most > count or (count and not most):
        raise DamagedError(f"it claims {count:,} experts, {most:,} of them used")
    groups = sizes.number("expert_group_count", 0, MAX_COUNT) or 0
    used = sizes.number("expert_group_used_count", 0, MAX_COUNT) or 0
    if groups and (groups >= count or (groups > 1 and (count % groups or not 0 < used < groups))):
        raise DamagedError(f"it claims {count:,} experts in {groups:,} groups, of which {used:,} are used")


def _check_heads(sizes: Sizes) -> None:
    heads = sizes.by_layer("attention.head_count", 0, MAX_HEADS)
    shared = sizes.by_layer("attention.head_count_kv", 0, MAX_HEADS) or heads
    for ours, theirs in zip(heads, shared, strict=False):
        if ours and theirs and ours % theirs:
            raise DamagedError(f"{ours:,} attention heads cannot share {theirs:,} key-value heads")
    width, first = sizes.number("embedding_length", 1, MAX_WIDTH), heads[0] if heads else 0
    length = sizes.number("attention.key_length", 1, MAX_UNITS)
    if length is None and width is not None and first:
        if width % first:
            raise DamagedError(f"a width of {width:,} cannot be divided among {first:,} attention heads")
        length = width // first
    rotated = sizes.number("rope.dimension_count", 0, MAX_UNITS)
    if rotated is not None and length is not None and (rotated > length or rotated % 2):
        raise DamagedError(f"RoPE cannot rotate {rotated:,} dimensions of attention heads of {length:,}")


def check_shapes(keys: Keys, tensors: Sequence[Tensor]) -> None:
    """Raise DamagedError if tensors contradict the number of layers, the width or the vocabulary.

    Only the tensors of this file are checked: a model may be split.
    """
    architecture = keys.values["general.architecture"]
    sizes = Sizes(keys, architecture)
    layers = max(sizes.layers, keys.values.get(f"{architecture}.decoder_block_count", 0))
    for tensor in tensors:
        number = re.match(r"(?:enc\.|dec\.)?blk\.(\d+)\.", tensor.name)
        if number is not None and int(number[1]) >= layers:
            raise DamagedError(f"it holds the tensor {shorten(tensor.name)}, but only {layers:,} layers")
        if tensor.name == "token_embd.weight" and architecture not in OWN_EMBEDDING:
            _check_embedding(tensor, keys, sizes)


def _check_embedding(tensor: Tensor, keys: Keys, sizes: Sizes) -> None:
    width, tokens = sizes.number("embedding_length", 1, MAX_WIDTH), keys.values.get("tokenizer.ggml.tokens")
    expected = (
        width if width is not None else tensor.shape[0],
        len(tokens) if tokens is not None else tensor.shape[-1],
    )
    if tensor.shape != expected:
        raise DamagedError(
            f"tensor 'token_embd.weight' has the shape {tensor.shape}, expected {expected}: width and vocabulary"
        )
