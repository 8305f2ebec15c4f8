"""The memory model of a GGUF, from its header alone: weights and cache of each layer, and a bound for the buffers.

The rules are llama.cpp's own (llama-kv-cache.cpp, llama-hparams.cpp, llama-context.cpp of the pinned version). The size
of the cache is exact, that of the compute buffers is an upper bound.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gladstone.errors import ArtifactError
from gladstone.gguf.header import GgufHeader, usable_context
from gladstone.gguf.types import TENSOR_TYPES

SMALL_BYTES = 1 << 20  # token ids, positions, norms and the like
CELLS = 256  # llama.cpp rounds the context up to a multiple of this
BLOCKS = {name.lower(): (block, size) for name, block, size in TENSOR_TYPES.values()}
# every n-th layer sees the whole context, the others a window, if the header has no pattern (src/models/*.cpp)
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "olmo2": 4, "llama4": 4}
WINDOWS = {"gemma2": 4096, "llama4": 8192}  # likewise
PATTERNS_READ = {*WINDOW_PERIODS, "gemma4", "mimo2", "step35"}  # architectures whose pattern llama.cpp reads
INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # every n-th layer has a KV cache, the others a state
SHARED_FROM = {"gemma3n": 20}  # later layers use the cache of an earlier one
RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
OF_THE_OUTPUT = ("output", "cls", "enc.output", "dec.output")


@dataclass(frozen=True)
class Layer:
    """A repeating layer: the size of its weights, and the widths of the keys and values that it caches for each token.

    `window` is the number of tokens that its attention sees, 0 for all; `state_bytes` is for each sequence.
    """

    weight_bytes: int
    key_width: int
    value_width: int
    key_head_width: int
    value_head_width: int
    window: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class MemoryModel:
    """The sizes of a model that determine its memory.

    If output and embedding are one tensor, both `output_bytes` and `input_bytes` count it: a GPU gets a copy.
    """

    architecture: str
    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    embedding_bytes: int
    largest_bytes: int  # of one tensor in a layer
    shares_embedding: bool
    trained_tokens: int
    vocabulary: int
    width: int
    inner_width: int  # of the feed-forward part, over all experts that a token uses
    heads: int
    head_width: int
    has_encoder: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in the file, each counted once."""
        copied = self.embedding_bytes if self.shares_embedding else 0
        return sum(layer.weight_bytes for layer in self.layers) + self.input_bytes + self.output_bytes - copied


@dataclass(frozen=True)
class ContextSettings:
    """The settings of a llama.cpp context.

    `context_tokens` is for all sequences together; `outputs` is the number of tokens of a batch whose logits may be
    read. With `unified`, all sequences share one cache; else each has an equal part. With `full_window`, layers with a
    window cache the whole context, which truncating the cache requires. With `kv_offload` a layer on a GPU has its
    cache there, else in CPU memory. The cache has cells for `cache_contexts` contexts: beams share what they can.
    """

    context_tokens: int
    batch_tokens: int = 512
    sequences: int = 1
    outputs: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    unified: bool = False
    full_window: bool = True
    kv_offload: bool = True
    cache_contexts: int = 1


def read_memory_model(headers: Sequence[GgufHeader]) -> MemoryModel:
    """The memory model for headers that `read_model` returned. Raises ArtifactError if a size is missing."""
    reader = _Reader(headers)
    count = reader.number("block_count")
    weights, input_bytes, output_bytes = _weights(headers, count)
    embedding = next((t.size_bytes for header in headers for t in header.tensors if t.name == "token_embd.weight"), 0)
    names = {tensor.name for header in headers for tensor in header.tensors}
    shares_embedding = "output.weight" not in names
    width, heads = reader.number("embedding_length"), max(reader.of_layers("attention.head_count", count, 0))
    lengths = ("attention.key_length", "attention.value_length")
    return MemoryModel(
        architecture=reader.architecture,
        layers=tuple(_layer(reader, number, count, weights[number]) for number in range(count)),
        input_bytes=input_bytes,
        output_bytes=output_bytes + (embedding if shares_embedding else 0),
        embedding_bytes=embedding,
        largest_bytes=max((t.size_bytes for h in headers for t in h.tensors if LAYER.match(t.name)), default=0),
        shares_embedding=shares_embedding,
        trained_tokens=usable_context(headers) or reader.number("context_length"),  # raises if there is none
        vocabulary=reader.vocabulary(),
        width=width,
        inner_width=_inner_width(reader, count),
        heads=heads,
        head_width=max(reader.number(key, width // max(heads, 1)) for key in lengths),
        has_encoder=has_encoder(headers),
    )


def has_encoder(headers: Sequence[GgufHeader]) -> bool:
    """True for an encoder-decoder model, such as T5."""
    return any(tensor.name.startswith("enc.") for header in headers for tensor in header.tensors)


def _inner_width(reader: "_Reader", count: int) -> int:
    """A third of the widest feed-forward part's values for a token: gate, up and their product."""
    plain = max(reader.of_layers("feed_forward_length", count, 0))
    used = max(reader.of_layers("expert_used_count", count, 0))
    expert = max(reader.of_layers("expert_feed_forward_length", count, plain))
    shared = reader.number("expert_shared_feed_forward_length", expert * reader.number("expert_shared_count", 0))
    mixed = used * (reader.number("embedding_length") + 2 * expert) // 3  # each expert's output besides its gate and up
    return max(plain, used * expert + shared, mixed, 2 * reader.number("ssm.inner_size", 0))


def cache_bytes(layer: Layer, settings: ContextSettings) -> int:
    """The exact size of a layer's cache, for all sequences."""
    cells, streams = cells_of(settings)
    if layer.window and not settings.full_window:
        seen = layer.window * (settings.sequences if settings.unified else 1) + settings.batch_tokens
        cells = min(cells, _padded(seen))
    row = row_bytes(layer.key_width, settings.kv_type) + row_bytes(layer.value_width, settings.kv_type)
    return row * cells * streams + layer.state_bytes * settings.sequences


def cells_of(settings: ContextSettings) -> tuple[int, int]:
    """Cells of a cache, and the number of caches."""
    whole = _padded(settings.context_tokens * settings.cache_contexts)
    if settings.unified or settings.sequences == 1:
        return whole, 1
    return _padded(whole // settings.sequences), settings.sequences


def row_bytes(width: int, kv_type: str) -> int:
    """Bytes of a row of `width` values of a type, as ggml stores it."""
    block, size = BLOCKS[kv_type]
    return -(-width // block) * size


def buffer_bytes(model: MemoryModel, settings: ContextSettings) -> int:
    """An upper bound for the buffers of a batch and its logits, on whichever device they are.

    The graph is widest at one of three points: a feed-forward part, attention without flash attention, or the logits.
    """
    batch = min(settings.batch_tokens, _padded(settings.context_tokens))
    cells = cells_of(settings)[0]
    outputs = batch if model.has_encoder else min(settings.outputs, batch)
    logits = 4 * model.vocabulary * max(settings.sequences, outputs)
    scores = 0
    if model.has_encoder:  # position bias and scores of every head, in the encoder and across to it
        scores = 4 * batch * max(cells, model.trained_tokens, batch) * (3 * model.heads + 1)
    elif not settings.flash_attention:
        scores = 4 * batch * cells * model.heads
    inner = 4 * batch * 3 * model.inner_width
    flows = 4 * batch * 7 * max(model.width, model.heads * model.head_width)
    kept = 4 * model.vocabulary * settings.sequences  # logits that the caller reads
    return int(1.03 * (flows + max(inner, scores, logits) + mask_bytes(model, settings))) + kept + SMALL_BYTES


def mask_bytes(model: MemoryModel, settings: ContextSettings) -> int:
    """Bytes of the attention masks (batch, cells), one for each kind of layer."""
    windows = {layer.window for layer in model.layers if layer.key_width}
    return (
        min(settings.batch_tokens, _padded(settings.context_tokens))
        * cells_of(settings)[0]
        * (2 if settings.flash_attention else 4)
        * len(windows)
    )


def input_bytes(model: MemoryModel, settings: ContextSettings) -> int:
    """Bytes that a GPU receives for a batch: a layer's input and the masks. Several GPUs keep four copies each."""
    return 8 * settings.batch_tokens * model.width + mask_bytes(model, settings)


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


def _weights(headers: Sequence[GgufHeader], count: int) -> tuple[list[int], int, int]:
    """Bytes of each layer, of the input's tensors, and of the output's."""
    layers, first, last = [0] * count, 0, 0
    for tensor in (tensor for header in headers for tensor in header.tensors):
        match = LAYER.match(tensor.name)
        if match:
            layers[min(int(match[1]), count - 1)] += tensor.size_bytes
        elif tensor.name.startswith(OF_THE_OUTPUT):
            last += tensor.size_bytes
        else:
            first += tensor.size_bytes
    return layers, first, last


def _layer(reader: "_Reader", number: int, count: int, weight_bytes: int) -> Layer:
    heads = reader.of_layers("attention.head_count", count, 0)[number]
    kv_heads = reader.of_layers("attention.head_count_kv", count, heads)[number]
    window = _window(reader, number)
    key_head, value_head = (_head_width(reader, which, window, heads) for which in ("key", "value"))
    keys, values = key_head * kv_heads, value_head * kv_heads
    if reader.number("attention.key_length_mla", 0):  # the values are read out of the keys
        values = 0
    recurrent = _is_recurrent(reader, number, kv_heads)
    cached = not recurrent and number < count - reader.number("nextn_predict_layers", 0)
    shared = reader.number("attention.shared_kv_layers", count - SHARED_FROM.get(reader.architecture, count))
    if not cached or number >= count - shared:
        keys = values = 0
    state = _state_bytes(reader) if recurrent else 0
    return Layer(weight_bytes, keys, values, key_head if keys else 0, value_head if values else 0, window, state)


def _head_width(reader: "_Reader", which: str, window: int, heads: int) -> int:
    usual = reader.number(f"attention.{which}_length", reader.number("embedding_length") // max(heads, 1))
    return reader.number(f"attention.{which}_length_swa", usual) if window else usual


def _window(reader: "_Reader", number: int) -> int:
    """Tokens that a layer's attention sees; 0 for all, and for unknown architectures, which overestimates the cache."""
    if reader.architecture not in PATTERNS_READ:
        return 0
    window = reader.number("attention.sliding_window", WINDOWS.get(reader.architecture, 0))
    pattern = reader.value("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return window if number < len(pattern) and pattern[number] else 0
    period = pattern if isinstance(pattern, int) else WINDOW_PERIODS.get(reader.architecture, 1)
    return window if period == 0 or number % period < period - 1 else 0


def _is_recurrent(reader: "_Reader", number: int, kv_heads: int) -> bool:
    if reader.architecture in RECURRENT:
        return True
    interval = INTERVALS.get(reader.architecture)
    if interval:
        return (number + 1) % reader.number("full_attention_interval", interval) != 0
    return kv_heads == 0 and _state_bytes(reader) > 0


def _state_bytes(reader: "_Reader") -> int:
    """Bytes of the float32 state of one sequence in one recurrent layer."""
    width = reader.number("embedding_length")
    head = reader.number("wkv.head_size", 0)
    if head:
        return 4 * (reader.number("token_shift_count", 2) * width + width * head)
    kernel = reader.number("shortconv.l_cache", 0)
    if kernel:
        return 4 * width * (kernel - 1)
    inner, state = reader.number("ssm.inner_size", 0), reader.number("ssm.state_size", 0)
    convolved = inner + 2 * reader.number("ssm.group_count", 0) * state
    return 4 * (max(reader.number("ssm.conv_kernel", 0) - 1, 0) * convolved + state * inner)


class _Reader:
    """Numbers of a header, by key without the architecture's prefix."""

    def __init__(self, headers: Sequence[GgufHeader]) -> None:
        self._header = headers[0]
        self.architecture: str = self._header.metadata["general.architecture"]

    def value(self, key: str) -> Any:
        return self._header.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int | None = None) -> int:
        """The value of a key, the largest of a list. Raises ArtifactError without a value and a default."""
        value = self.value(key)
        if isinstance(value, list) and value:
            value = max(value)
        if isinstance(value, int):
            return value
        if default is None:
            raise ArtifactError(f"{self._header.path}: its header has no number for {self.architecture}.{key}.")
        return default

    def of_layers(self, key: str, count: int, default: int) -> list[int]:
        """The value of each layer: a list in the header, or one value for all layers."""
        values = self.value(key)
        if isinstance(values, list) and len(values) >= count and all(isinstance(value, int) for value in values):
            return values[:count] or [default]
        if isinstance(values, int):
            return [values] * max(count, 1)
        return [default] * max(count, 1)

    def vocabulary(self) -> int:
        tokens = self._header.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, list) else self.number("vocab_size", 0)
