"""Probe one CPU backend of llama.cpp in its own process: logits and time of a small random model, written on the spot.

The model's tensors cover the common tensor types, since each has its own kernels.
`gladstone.llamacpp.backends.probe_backend` starts this module.
"""

import math
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gladstone.errors import UnsupportedError
from gladstone.gguf.types import ALIGNMENT, MAGIC, TENSOR_TYPE_NUMBERS, TENSOR_TYPES, ValueType
from gladstone.process.child_main import serve

WIDTH, INNER, LAYERS, HEADS, VOCABULARY = 512, 1024, 2, 8, 256
PROMPT_TOKENS, REPEATS, DECODED_TOKENS = 48, 5, 8
F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = (
    TENSOR_TYPE_NUMBERS[name] for name in ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16")
)
# where a block has its scales, in 16-bit numbers from its beginning; all other bits may be random
SCALES = {Q4_0: (0,), Q4_1: (0, 1), Q5_0: (0,), Q8_0: (0,), Q4_K: (0, 1), Q5_K: (0, 1), Q6_K: (104,)}
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYER_TYPES = ((Q4_K, Q8_0, F16, Q4_0, Q4_K, Q5_K, Q6_K), (BF16, Q5_0, Q4_1, Q8_0, Q4_1, Q4_0, Q8_0))  # of each layer's
Tensor = tuple[str, tuple[int, ...], int]


def write_model(path: Path) -> None:
    """Write a Llama decoder without a vocabulary: the same file every time."""
    tensors = _tensors()
    random = np.random.default_rng(7)
    blobs = [_weights(random, shape, kind) for _, shape, kind in tensors]
    keys = _keys()
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(keys)), *keys]
    offset = 0
    for (name, shape, kind), blob in zip(tensors, blobs, strict=True):
        parts += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)]
        offset += _padded(len(blob))
    size = sum(map(len, parts))
    parts.append(bytes(_padded(size) - size))
    parts += [blob + bytes(_padded(len(blob)) - len(blob)) for blob in blobs]
    path.write_bytes(b"".join(parts))


def measure(path: Path) -> dict[str, Any]:
    """Logits after a prompt and after each decoded token, and the shortest time of prompt and tokens together.

    Raises UnsupportedError if the backend loads no model, fails, or computes NaN or Inf.
    """
    from gladstone.llamacpp.library import library

    lib = library()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch, params.no_perf = 128, 1, 1, True
    context = lib.llama_init_from_model(model, params) if model else None
    if not context:
        raise UnsupportedError("the backend loads no model")
    times_s: list[float] = []
    logits: list[float] = []
    for _ in range(REPEATS):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        begin_s, logits = time.perf_counter(), []
        for tokens in (list(range(1, 1 + PROMPT_TOKENS)), *([token] for token in range(100, 100 + DECODED_TOKENS))):
            array = (lib.llama_token * len(tokens))(*tokens)
            if lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))) != 0:
                raise UnsupportedError("the backend cannot evaluate the model")
            logits += lib.llama_get_logits_ith(context, -1)[:VOCABULARY]
        times_s.append(time.perf_counter() - begin_s)
    if not all(map(math.isfinite, logits)):
        raise UnsupportedError("the backend computes NaN or Inf")
    return {"logits": logits, "time_s": min(times_s)}


def _tensors() -> list[Tensor]:
    tensors: list[Tensor] = [("token_embd.weight", (WIDTH, VOCABULARY), F16), ("output_norm.weight", (WIDTH,), F32)]
    tensors.append(("output.weight", (WIDTH, VOCABULARY), Q6_K))
    sizes = {"ffn_gate": (WIDTH, INNER), "ffn_up": (WIDTH, INNER), "ffn_down": (INNER, WIDTH)}
    for number in range(LAYERS):
        tensors += [(f"blk.{number}.{name}_norm.weight", (WIDTH,), F32) for name in ("attn", "ffn")]
        for name, kind in zip(MATRICES, LAYER_TYPES[number], strict=True):
            tensors.append((f"blk.{number}.{name}.weight", sizes.get(name, (WIDTH, WIDTH)), kind))
    return tensors


def _weights(random: np.random.Generator, shape: tuple[int, ...], kind: int) -> bytes:
    """Random weights with a standard deviation of about 1/√width in the type's layout; norms are 1."""
    if kind == F32:
        return np.ones(shape, "<f4").tobytes()
    count = math.prod(shape)
    if kind in (F16, BF16):
        values = random.standard_normal(count).astype("<f4") / math.sqrt(shape[0])
        return values.astype("<f2").tobytes() if kind == F16 else (values.view("<u4") >> 16).astype("<u2").tobytes()
    _, block, size = TENSOR_TYPES[kind]
    blocks: npt.NDArray[np.uint8] = random.integers(0, 256, (count // block, size), np.uint8)
    scale = np.array([_scale(kind) / math.sqrt(shape[0])], "<f2").view(np.uint8)
    for index in SCALES[kind]:
        blocks[:, 2 * index : 2 * index + 2] = scale
    return blocks.tobytes()


def _scale(kind: int) -> float:
    """The scale with which random quants of this type have about unit variance."""
    return {Q4_0: 0.2, Q4_1: 0.1, Q5_0: 0.1, Q8_0: 0.013, Q4_K: 0.004, Q5_K: 0.002, Q6_K: 0.0008}[kind]


def _keys() -> list[bytes]:
    numbers = {
        "context_length": 128, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": HEADS, "vocab_size": VOCABULARY,
        "rope.dimension_count": WIDTH // HEADS,
    }  # fmt: skip
    texts = {"general.architecture": "llama", "tokenizer.ggml.model": "no_vocab"}
    return [
        *(_text(key) + struct.pack("<I", ValueType.STRING) + _text(value) for key, value in texts.items()),
        *(_text(f"llama.{key}") + struct.pack("<II", ValueType.U32, value) for key, value in numbers.items()),
        _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", ValueType.F32, 1e-5),
    ]


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def probe(_job: dict[str, Any]) -> dict[str, Any]:
    """Measure the backend that GLADSTONE_CPU_BACKEND names, or the built-in one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.gguf"
        write_model(path)
        return measure(path)


if __name__ == "__main__":
    serve(probe)
