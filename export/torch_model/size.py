"""How much memory a trained model takes in torch, from the headers of its files."""

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.tensors.safetensors_io import BYTES, StoredTensor
from export.tensors.weights import read_adapter_tensors, read_folder
from gladstone import file_names

FLOAT32 = 4  # bytes of a number
NF4_BYTES = 0.52  # a weight in four bits, with its block's scale
LAYER = re.compile(r"^(.*?\.)??\d+(?=\.)")  # the name of a layer's tensor up to the layer's number
EXPERT = re.compile(r"\.experts\.\d+\.")  # transformers joins the experts of a layer in one tensor


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model in float32: what lies outside the layers, the largest layer, and all layers.

    `held` bytes of stored weights are in memory besides, however many layers are widened.
    """

    tables: int
    layer: int
    layers: int
    held: int = 0

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return (self.tables + self.layers) // FLOAT32


def model_size(base: Path, adapter: Path | None, *, in_4bit: bool = False) -> ModelSize:
    """The size of a base with its adapter; reads headers only."""
    stored = read_folder(base)
    by_layer: Counter[str] = Counter()
    tables = 0
    for name, tensor in stored.items():
        found = LAYER.match(name)
        if found:
            by_layer[found[0]] += math.prod(tensor.shape) * FLOAT32
        else:
            tables += math.prod(tensor.shape) * FLOAT32
    if adapter is not None:
        tables += sum(math.prod(tensor.shape) * FLOAT32 for tensor in read_adapter_tensors(adapter).values())
    layers = sum(by_layer.values())
    held = int(layers / FLOAT32 * NF4_BYTES) if in_4bit else _held(stored)
    return ModelSize(tables, max(by_layer.values(), default=0), layers, held)


def stored_dtype(base: Path) -> str:
    """The float dtype (a key of DTYPES) in which every weight of a model folder can be read without rounding."""
    return _widest(read_folder(base))


def _widest(stored: Mapping[str, StoredTensor]) -> str:
    kinds = {tensor.dtype for tensor in stored.values() if tensor.dtype in {"F64", "F32", "F16", "BF16"}}
    return next(iter(kinds)) if len(kinds) == 1 else "F32"


def _held(stored: Mapping[str, StoredTensor]) -> int:
    """Bytes of stored weights that transformers copies to memory; it maps all others from their files."""
    widest, held = _widest(stored), 0
    for name, tensor in stored.items():
        if tensor.dtype != widest:
            held += math.prod(tensor.shape) * BYTES.get(widest, FLOAT32)
        elif EXPERT.search(name) or (tensor.path.suffix == ".bin" and not zipfile.is_zipfile(tensor.path)):
            held += tensor.size_bytes
    return held


def model_shape(base: Path) -> dict[str, int]:
    """Width, feed-forward width, layers, bytes of a token in llama.cpp's cache, and entries of the vocabulary."""
    config: dict[str, Any] = json.loads((base / file_names.CONFIG).read_text(encoding="utf-8"))
    config |= config.get("text_config") or {}

    def known(*names: str, instead: int) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), instead)

    width = known("hidden_size", "d_model", "n_embd", instead=1024)
    heads = known("num_attention_heads", "num_heads", "n_head", instead=16)
    layers = known("num_hidden_layers", "num_layers", "n_layer", instead=32)
    head = known("head_dim", "d_kv", instead=width // max(heads, 1))
    return {
        "width": width,
        "inner": known("intermediate_size", "d_ff", "n_inner", instead=4 * width),
        "cached": 2 * 2 * layers * head * known("num_key_value_heads", instead=heads),
        "vocabulary": known("vocab_size", instead=50_000),
    }
