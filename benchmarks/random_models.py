"""Models with random weights in the shape of well-known ones: their text is noise, their speed that of the shape."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gladstone.gguf.header import read_header

Q4_0_BLOCK, Q4_0_BYTES = 32, 18


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int


SHAPES = {"1b": LlamaShape(2048, 16, 32, 8, 8192)}  # Llama 3.2 1B


def write_random_model(path: Path, shape: LlamaShape, like: Path) -> None:
    """A Llama in Q4_0 of that shape, with the vocabulary and the template of the file `like`."""
    import gguf

    header, chance = read_header(like), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    _copy_tokenizer(writer, header.metadata)
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_vocab_size(len(header.metadata["tokenizer.ggml.tokens"]))
    for name, sizes in _tensors(shape, len(header.metadata["tokenizer.ggml.tokens"])):
        if len(sizes) == 1:
            writer.add_tensor(name, np.ones(sizes, np.float32))
        else:
            data = _random_q4_0(chance, sizes)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(writer: Any, metadata: dict[str, Any]) -> None:
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(metadata["tokenizer.chat_template"])


def _tensors(shape: LlamaShape, vocabulary: int) -> list[tuple[str, tuple[int, ...]]]:
    kv = shape.width // shape.heads * shape.kv_heads
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (vocabulary, shape.width))]
    for layer in range(shape.layers):
        sizes: dict[str, tuple[int, ...]] = {
            "attn_norm": (shape.width,), "ffn_norm": (shape.width,),
            "attn_q": (shape.width, shape.width), "attn_k": (kv, shape.width), "attn_v": (kv, shape.width),
            "attn_output": (shape.width, shape.width), "ffn_gate": (shape.inner, shape.width),
            "ffn_up": (shape.inner, shape.width), "ffn_down": (shape.width, shape.inner),
        }  # fmt: skip
        tensors += [(f"blk.{layer}.{name}.weight", size) for name, size in sizes.items()]
    return [*tensors, ("output_norm.weight", (shape.width,))]


def _random_q4_0(chance: np.random.Generator, sizes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Blocks of a scale (float16) and 32 numbers of 4 bits, rows (out, in / 32 * 18)."""
    rows, columns = sizes
    blocks = columns // Q4_0_BLOCK
    data = chance.integers(0, 256, (rows, blocks, Q4_0_BYTES), dtype=np.uint8)
    scales = np.full((rows, blocks), 0.03 / np.sqrt(columns) * 4, np.float16)
    data[:, :, :2] = scales.view(np.uint8).reshape(rows, blocks, 2)
    return data.reshape(rows, blocks * Q4_0_BYTES)
