"""GGUF files of well-known models without their weights (sparse files), and what llama.cpp itself takes for them.

Run as a program it measures: jobs as JSON lines on stdin, one JSON line of bytes for each on stdout. llama.cpp's
`no_alloc` only plans its buffers, so models of any size are measured in milliseconds.
"""

import ctypes
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gladstone.gguf.types import TENSOR_TYPES
from runtime.machine.memory_model import ContextSettings
from tests.gladstone.gguf_files import F32, STRING, U32, Gguf, TensorEntry

Q4_0, F16, Q8_0, Q4_K, Q6_K = 2, 1, 8, 12, 14
Key = tuple[str, int, Any]
Tensors = list[tuple[str, tuple[int, ...], int]]  # name, shape, type


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind; `keys` are further ones, without the architecture."""

    architecture: str = "llama"
    vocabulary: int = 128_256
    layers: int = 32
    width: int = 4096
    inner: int = 14_336
    heads: int = 32
    kv_heads: int = 8
    head_width: int = 128
    trained: int = 8192
    kind: int = Q4_K
    tied: bool = False
    experts: int = 0
    used: int = 0
    keys: tuple[Key, ...] = ()


SHAPES = {
    "llama-3-8b": Shape(),
    "llama-3.2-1b": Shape(layers=16, width=2048, inner=8192, head_width=64, tied=True),
    "mistral-7b": Shape(vocabulary=32_000, trained=32_768),
    "tinyllama": Shape(vocabulary=32_000, layers=22, width=2048, inner=5632, kv_heads=4, head_width=64, kind=Q4_0),
    "mixtral": Shape(vocabulary=32_000, trained=32_768, experts=8, used=2),
    "gemma-3-4b": Shape(
        "gemma3", 262_144, 34, 2560, 10_240, 8, 4, 256, 131_072, tied=True,
        keys=(("attention.sliding_window", U32, 1024),),
    ),
    "gemma-2-2b": Shape("gemma2", 256_000, 26, 2304, 9216, 8, 4, 256, tied=True),
    "qwen2-7b": Shape("qwen2", 151_936, 28, 3584, 18_944, 28, 4, 128, 32_768),
    "qwen3-0.6b": Shape("qwen3", 151_936, 28, 1024, 3072, 16, 8, 128, 32_768, tied=True),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 151_936, 48, 2048, 768, 32, 4, 128, 32_768, experts=128, used=8,
        keys=(("expert_feed_forward_length", U32, 768),),
    ),
}  # fmt: skip


def write_shape(folder: Path, name: str) -> Path:
    """The file of a model of `SHAPES`, or of "gpt2", "flan-t5-base" and "mamba-130m"."""
    special = {"gpt2": _gpt2, "flan-t5-base": _t5, "mamba-130m": _mamba}
    keys, tensors = special[name]() if name in special else _llama(SHAPES[name])
    return write_sparse(folder / f"{name}.gguf", keys, tensors)


def write_sparse(path: Path, keys: list[Key], tensors: Tensors) -> Path:
    """A sound file whose weights are a hole."""
    entries, offset = [], 0
    for name, shape, kind in tensors:
        entries.append(TensorEntry(name, shape, kind, offset))
        _, block, size = TENSOR_TYPES[kind]
        offset += -(-math.prod(shape) // block * size // 32) * 32
    content = Gguf(keys=keys, tensors=entries, data=b"").content()
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + offset)
    return path


def _keys(architecture: str, numbers: dict[str, int], *, epsilon: str = "layer_norm_rms_epsilon") -> list[Key]:
    return [
        ("general.architecture", STRING, architecture),
        ("tokenizer.ggml.model", STRING, "no_vocab"),
        (f"{architecture}.attention.{epsilon}", F32, 1e-5),
        *((f"{architecture}.{key}", U32, value) for key, value in numbers.items()),
    ]


def _llama(shape: Shape) -> tuple[list[Key], Tensors]:
    numbers = {
        "vocab_size": shape.vocabulary, "context_length": shape.trained, "embedding_length": shape.width,
        "block_count": shape.layers, "feed_forward_length": shape.inner, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width, "rope.dimension_count": shape.head_width,
    }  # fmt: skip
    if shape.experts:
        numbers |= {"expert_count": shape.experts, "expert_used_count": shape.used}
    keys = _keys(shape.architecture, numbers) + [(f"{shape.architecture}.{n}", k, v) for n, k, v in shape.keys]
    tensors: Tensors = [("token_embd.weight", (shape.width, shape.vocabulary), shape.kind)]
    tensors += [("output_norm.weight", (shape.width,), 0)]
    if not shape.tied:
        tensors.append(("output.weight", (shape.width, shape.vocabulary), Q6_K))
    for number in range(shape.layers):
        tensors += [(f"blk.{number}.{name}", dimensions, kind) for name, dimensions, kind in _layer(shape)]
    return keys, tensors


def _layer(shape: Shape) -> Tensors:
    width, inner, kind = shape.width, shape.inner, shape.kind
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    found: Tensors = [
        ("attn_norm.weight", (width,), 0),
        ("ffn_norm.weight", (width,), 0),
        ("attn_q.weight", (width, queries), kind),
        ("attn_k.weight", (width, keys), kind),
        ("attn_v.weight", (width, keys), kind),
        ("attn_output.weight", (queries, width), kind),
    ]
    if shape.architecture.startswith("gemma"):
        found += [("post_attention_norm.weight", (width,), 0), ("post_ffw_norm.weight", (width,), 0)]
    if shape.architecture in ("gemma3", "qwen3", "qwen3moe"):
        found += [(f"attn_{which}_norm.weight", (shape.head_width,), 0) for which in "qk"]
    if shape.architecture == "qwen2":
        found += [(f"attn_{which}.bias", (size,), 0) for which, size in (("q", queries), ("k", keys), ("v", keys))]
    if shape.experts:
        return [
            *found,
            ("ffn_gate_inp.weight", (width, shape.experts), 0),
            ("ffn_gate_exps.weight", (width, inner, shape.experts), kind),
            ("ffn_up_exps.weight", (width, inner, shape.experts), kind),
            ("ffn_down_exps.weight", (inner, width, shape.experts), kind),
        ]
    return [
        *found,
        *((f"ffn_{name}.weight", (width, inner), kind) for name in ("gate", "up")),
        ("ffn_down.weight", (inner, width), kind),
    ]


def _gpt2() -> tuple[list[Key], Tensors]:
    width, inner, layers = 768, 3072, 12
    numbers = {
        "vocab_size": 50_257, "context_length": 1024, "embedding_length": width, "block_count": layers,
        "feed_forward_length": inner, "attention.head_count": 12,
    }  # fmt: skip
    tensors: Tensors = [
        ("token_embd.weight", (width, 50_257), F16),
        ("position_embd.weight", (width, 1024), 0),
        ("output_norm.weight", (width,), 0),
        ("output_norm.bias", (width,), 0),
    ]
    sizes = {"attn_qkv": (width, 3 * width), "attn_output": (width, width), "ffn_up": (width, inner)}
    for number in range(layers):
        at = f"blk.{number}."
        tensors += [
            (f"{at}{name}.{part}", (width,), 0) for name in ("attn_norm", "ffn_norm") for part in ("weight", "bias")
        ]
        for name, (first, second) in (sizes | {"ffn_down": (inner, width)}).items():
            tensors += [(f"{at}{name}.weight", (first, second), F16), (f"{at}{name}.bias", (second,), 0)]
    return _keys("gpt2", numbers, epsilon="layer_norm_epsilon"), tensors


def _t5() -> tuple[list[Key], Tensors]:
    width, inner, layers, heads, vocabulary = 768, 2048, 12, 12, 32_128
    numbers = {
        "vocab_size": vocabulary, "context_length": 512, "embedding_length": width, "block_count": layers,
        "feed_forward_length": inner, "attention.head_count": heads, "attention.key_length": 64,
        "attention.value_length": 64, "attention.relative_buckets_count": 32, "decoder_start_token_id": 0,
    }  # fmt: skip
    tensors: Tensors = [
        ("token_embd.weight", (width, vocabulary), Q8_0),
        ("output.weight", (width, vocabulary), Q8_0),
        ("enc.output_norm.weight", (width,), 0),
        ("dec.output_norm.weight", (width,), 0),
    ]
    for side in ("enc", "dec"):
        for number in range(layers):
            at = f"{side}.blk.{number}."
            norms = ["attn_norm", "ffn_norm"] + (["cross_attn_norm"] if side == "dec" else [])
            tensors += [(f"{at}{name}.weight", (width,), 0) for name in norms]
            tensors += [(f"{at}attn_rel_b.weight", (heads, 32), 0)] if number == 0 else []
            kinds = ["attn"] + (["cross_attn"] if side == "dec" else [])
            tensors += [(f"{at}{kind}_{part}.weight", (width, width), Q8_0) for kind in kinds for part in "qkvo"]
            tensors += [(f"{at}ffn_{name}.weight", (width, inner), Q8_0) for name in ("gate", "up")]
            tensors += [(f"{at}ffn_down.weight", (inner, width), Q8_0)]
    return _keys("t5", numbers), tensors


def _mamba() -> tuple[list[Key], Tensors]:
    width, inner, state, rank, layers = 768, 1536, 16, 48, 24
    numbers = {
        "vocab_size": 50_280, "context_length": 1 << 20, "embedding_length": width, "block_count": layers,
        "feed_forward_length": 0, "attention.head_count": 0, "ssm.conv_kernel": 4, "ssm.inner_size": inner,
        "ssm.state_size": state, "ssm.time_step_rank": rank,
    }  # fmt: skip
    layer: Tensors = [
        ("attn_norm.weight", (width,), 0),
        ("ssm_in.weight", (width, 2 * inner), F16),
        ("ssm_conv1d.weight", (4, inner), 0),
        ("ssm_conv1d.bias", (inner,), 0),
        ("ssm_x.weight", (inner, rank + 2 * state), F16),
        ("ssm_dt.weight", (rank, inner), F16),
        ("ssm_dt.bias", (inner,), 0),
        ("ssm_a", (state, inner), 0),
        ("ssm_d", (inner,), 0),
        ("ssm_out.weight", (inner, width), F16),
    ]
    tensors: Tensors = [("token_embd.weight", (width, 50_280), F16), ("output_norm.weight", (width,), 0)]
    tensors += [(f"blk.{number}.{name}", shape, kind) for number in range(layers) for name, shape, kind in layer]
    return _keys("mamba", numbers), tensors


@dataclass(frozen=True)
class Taken:
    """What llama.cpp says that it takes, in bytes (of MiB with two decimals)."""

    weights: float
    cache: float
    buffers: float


def measure(jobs: list[tuple[Path, ContextSettings]], *, allocate: bool = False) -> list[Taken]:
    """Of each model and use; with `allocate` the weights are loaded for real. In a process of its own."""
    lines = [
        json.dumps({"path": str(path), "settings": asdict(settings), "allocate": allocate}) for path, settings in jobs
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.gguf_shapes"],
        input="\n".join(lines), capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    return [Taken(**json.loads(line)) for line in done.stdout.splitlines()]


def _measure(lib: Any, log: list[str], path: str, settings: ContextSettings, allocate: bool) -> Taken:
    from gladstone.llamacpp.context import CACHE_TYPES

    log.clear()
    params = lib.llama_model_default_params()
    if not allocate:
        params.no_alloc, params.load_mode = True, 0
    model = lib.llama_model_load_from_file(path.encode(), params)
    assert model, "".join(log)[-500:]
    context = lib.llama_context_default_params()
    context.n_ctx = settings.context_tokens
    context.n_batch = context.n_ubatch = settings.batch_tokens
    context.n_seq_max, context.n_outputs_max = settings.sequences, settings.outputs
    context.kv_unified = settings.unified
    context.flash_attn_type, context.swa_full = int(settings.flash_attention), settings.full_window
    context.type_k = context.type_v = CACHE_TYPES[settings.kv_type]
    handle = lib.llama_init_from_model(model, context)
    assert handle, "".join(log)[-500:]
    lib.llama_free(handle)
    lib.llama_model_free(model)
    text = "".join(log)
    caches = re.findall(r"(?:llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB", text)
    buffers = re.findall(r"(?:compute|output) buffer size = +([\d.]+) MiB", text)
    weights = re.findall(r"model buffer size = +([\d.]+) MiB", text)
    return Taken(*(sum(map(float, found)) * (1 << 20) for found in (weights, caches, buffers)))


def _serve() -> None:
    from gladstone.llamacpp.library import library

    lib = library()
    log: list[str] = []
    callback = lib.llama_log_callback(lambda _level, text, _data: log.append(text.decode("utf-8", "replace")))
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    for line in sys.stdin:
        job = json.loads(line)
        taken = _measure(lib, log, job["path"], ContextSettings(**job["settings"]), job["allocate"])
        print(json.dumps(asdict(taken)), flush=True)


if __name__ == "__main__":
    _serve()
