"""Small real models as GGUF, written without a converter: each loads in llama.cpp and says something."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.gladstone.gguf_files import ARRAY, BOOL, F32, I32, STRING, U8, U32, Array, Gguf, TensorEntry

WIDTH, LAYERS, HEADS, UNITS, CONTEXT_TOKENS = 64, 2, 4, 128, 256
F32_TENSOR, F16_TENSOR, Q8_0_TENSOR = 0, 1, 8
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Weights = list[tuple[str, npt.NDArray[np.float32], int]]
Keys = list[tuple[str, int, Any]]


def tiny_bpe(seed: int = 0) -> Gguf:
    """A Llama with GPT-2's kind of vocabulary, some of its weights in 8 bit."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in letters]
    tokens = [*map(chr, letters), *(chr(256 + number) for number in range(len(others)))]
    merges = ["h e", "t he", "a n", "i n", "Ġ the", "o u", "e r", "Ġ a", "an d", "Ġ and"]
    tokens += [merge.replace(" ", "") for merge in merges]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [NORMAL] * len(tokens) + [CONTROL] * len(special)
    tokens += special
    keys = [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, Array(I32, types)),
        ("tokenizer.ggml.merges", ARRAY, Array(STRING, merges)),
        ("tokenizer.ggml.bos_token_id", U32, tokens.index("<|endoftext|>")),
        ("tokenizer.ggml.eos_token_id", U32, tokens.index("<|im_end|>")),
        ("tokenizer.ggml.padding_token_id", U32, tokens.index("<|endoftext|>")),
        ("tokenizer.ggml.add_bos_token", BOOL, 0),
        ("tokenizer.chat_template", STRING, CHATML),
    ]
    return _llama(keys, len(tokens), np.random.default_rng(seed), Q8_0_TENSOR)


def tiny_spm(seed: int = 0) -> Gguf:
    """A Llama with SentencePiece's kind of vocabulary: byte-pair merges by score, and bytes for the rest."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "th", "the", "▁the", "he", "in", "an", "▁a", "and"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    keys = [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
        ("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * 259 + [-float(rank) for rank in range(len(pieces))])),
        ("tokenizer.ggml.token_type", ARRAY, Array(I32, types)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.unknown_token_id", U32, 0),
        ("tokenizer.ggml.add_bos_token", BOOL, 1),
        ("tokenizer.chat_template", STRING, "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"),
    ]
    return _llama(keys, len(tokens), np.random.default_rng(seed), F16_TENSOR)


def tiny_t5(seed: int = 0) -> Gguf:
    """An encoder and decoder with a unigram vocabulary, and rules that rewrite characters first."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁the", "▁a", "▁and", "ing"]
    tokens = ["<pad>", "</s>", "<unk>", *pieces]
    keys = [
        *_sizes("t5"),
        ("t5.attention.key_length", U32, WIDTH // HEADS),
        ("t5.attention.value_length", U32, WIDTH // HEADS),
        ("t5.attention.layer_norm_epsilon", F32, 1e-6),
        ("t5.attention.layer_norm_rms_epsilon", F32, 1e-6),
        ("t5.attention.relative_buckets_count", U32, 32),
        ("t5.decoder_start_token_id", U32, 0),
        ("tokenizer.ggml.model", STRING, "t5"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
        ("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * 3 + [-1.0 - rank for rank in range(len(pieces))])),
        ("tokenizer.ggml.token_type", ARRAY, Array(I32, [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * len(pieces)])),
        ("tokenizer.ggml.add_space_prefix", BOOL, 1),
        ("tokenizer.ggml.remove_extra_whitespaces", BOOL, 1),
        ("tokenizer.ggml.precompiled_charsmap", ARRAY, Array(U8, list(charsmap({"A": "a", "B": "bb", "é": "e"})))),
        ("tokenizer.ggml.eos_token_id", U32, 1),
        ("tokenizer.ggml.unknown_token_id", U32, 2),
        ("tokenizer.ggml.padding_token_id", U32, 0),
        ("tokenizer.ggml.add_bos_token", BOOL, 0),
        ("tokenizer.ggml.add_eos_token", BOOL, 1),
    ]
    draw = _drawer(np.random.default_rng(seed))
    weights = [draw("token_embd.weight", len(tokens), WIDTH), draw("output.weight", len(tokens), WIDTH)]
    for side in ("enc", "dec"):
        weights.append(draw(f"{side}.output_norm.weight", WIDTH))
        for layer in range(LAYERS):
            weights += _t5_block(draw, side, f"{side}.blk.{layer}.", with_positions=layer == 0)
    return _assemble(keys, weights)


def tiny_bert(seed: int = 0) -> Gguf:
    """A model that makes vectors of texts, with a WordPiece vocabulary."""
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in letters), *letters, "▁the"]
    keys = [
        *_sizes("bert"),
        ("bert.attention.layer_norm_epsilon", F32, 1e-12),
        ("bert.attention.causal", BOOL, 0),
        ("bert.pooling_type", U32, 1),
        ("tokenizer.ggml.token_type_count", U32, 2),
        ("tokenizer.ggml.model", STRING, "bert"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, Array(I32, [CONTROL] * 5 + [NORMAL] * (len(tokens) - 5))),
        ("tokenizer.ggml.padding_token_id", U32, 0),
        ("tokenizer.ggml.unknown_token_id", U32, 1),
        ("tokenizer.ggml.bos_token_id", U32, 2),
        ("tokenizer.ggml.cls_token_id", U32, 2),
        ("tokenizer.ggml.seperator_token_id", U32, 3),
        ("tokenizer.ggml.eos_token_id", U32, 3),
        ("tokenizer.ggml.mask_token_id", U32, 4),
    ]
    draw = _drawer(np.random.default_rng(seed))
    weights = [
        draw("token_embd.weight", len(tokens), WIDTH),
        draw("position_embd.weight", CONTEXT_TOKENS, WIDTH),
        draw("token_types.weight", 2, WIDTH),
        draw("token_embd_norm.weight", WIDTH),
        draw("token_embd_norm.bias", WIDTH),
    ]
    for layer in range(LAYERS):
        for name, *shape in (
            *((f"attn_{part}", WIDTH, WIDTH) for part in ("q", "k", "v", "output")),
            ("ffn_up", UNITS, WIDTH), ("ffn_down", WIDTH, UNITS), ("attn_output_norm", WIDTH), ("layer_output_norm", WIDTH),
        ):  # fmt: skip
            weights += [draw(f"blk.{layer}.{name}.weight", *shape), draw(f"blk.{layer}.{name}.bias", shape[0])]
    return _assemble(keys, weights)


MODELS: dict[str, Callable[[], Gguf]] = {"bpe": tiny_bpe, "spm": tiny_spm, "t5": tiny_t5, "bert": tiny_bert}


def charsmap(rules: dict[str, str]) -> bytes:
    """SentencePiece's rules for rewriting characters, each in a block of 256 units of its own."""
    units, replacements = [0] * 512, b""
    for text, replacement in rules.items():
        state = 256  # where the first unit leads
        for number, byte in enumerate(text.encode()):
            unit = state ^ byte
            if not units[unit]:
                target = len(units)
                units += [0] * 256
                units[unit] = (unit ^ target) << 10 | byte
            state = unit ^ units[unit] >> 10
            if number == len(text.encode()) - 1:
                units[unit] |= 1 << 8
                units[state] = 1 << 31 | len(replacements)
        replacements += replacement.encode() + b"\0"
    units[0] = 256 << 10
    packed = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(packed)) + packed + replacements


def _sizes(architecture: str) -> Keys:
    return [
        ("general.architecture", STRING, architecture),
        ("general.name", STRING, "Tiny"),
        ("general.file_type", U32, 1),
        (f"{architecture}.context_length", U32, CONTEXT_TOKENS),
        (f"{architecture}.embedding_length", U32, WIDTH),
        (f"{architecture}.block_count", U32, LAYERS),
        (f"{architecture}.feed_forward_length", U32, UNITS),
        (f"{architecture}.attention.head_count", U32, HEADS),
    ]


def _llama(vocabulary: Keys, tokens: int, generator: np.random.Generator, kind: int) -> Gguf:
    keys = [
        *_sizes("llama"),
        ("llama.attention.head_count_kv", U32, HEADS // 2),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, WIDTH // HEADS),
        ("llama.rope.freq_base", F32, 10_000.0),
        *vocabulary,
    ]
    draw = _drawer(generator)
    weights = [draw("token_embd.weight", tokens, WIDTH), draw("output_norm.weight", WIDTH)]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        weights += [draw(f"{block}{name}_norm.weight", WIDTH) for name in ("attn", "ffn")]
        weights += [draw(f"{block}attn_{name}.weight", WIDTH, WIDTH) for name in ("q", "output")]
        weights += [draw(f"{block}attn_{name}.weight", WIDTH // 2, WIDTH) for name in ("k", "v")]
        weights += [draw(f"{block}ffn_{name}.weight", UNITS, WIDTH, kind=kind) for name in ("gate", "up")]
        weights.append(draw(f"{block}ffn_down.weight", WIDTH, UNITS, kind=kind))
    return _assemble(keys, weights)


def _t5_block(draw: Callable[..., Any], side: str, block: str, *, with_positions: bool) -> Weights:
    attentions = ("attn", "cross_attn") if side == "dec" else ("attn",)
    weights: Weights = []
    for attention in attentions:
        weights.append(draw(f"{block}{attention}_norm.weight", WIDTH))
        weights += [draw(f"{block}{attention}_{part}.weight", WIDTH, WIDTH) for part in "qkvo"]
    if with_positions:
        weights.append(draw(f"{block}attn_rel_b.weight", 32, HEADS))
    weights.append(draw(f"{block}ffn_norm.weight", WIDTH))
    weights += [draw(f"{block}ffn_{name}.weight", UNITS, WIDTH) for name in ("gate", "up")]
    return [*weights, draw(f"{block}ffn_down.weight", WIDTH, UNITS)]


def _drawer(generator: np.random.Generator) -> Callable[..., Any]:
    def draw(name: str, *shape: int, kind: int = F32_TENSOR) -> tuple[str, npt.NDArray[np.float32], int]:
        values = generator.normal(scale=0.3, size=shape).astype(np.float32)
        return name, values + 1.0 if "norm.weight" in name else values, kind

    return draw


def _assemble(keys: Keys, weights: Weights) -> Gguf:
    """The shape in the file has the fastest dimension first."""
    entries, data = [], b""
    for name, values, kind in weights:
        data += bytes(-len(data) % 32)
        entries.append(TensorEntry(name, values.shape[::-1], kind, len(data)))
        data += _encoded(values, kind)
    return Gguf(keys=keys, tensors=entries, data=data)


def _encoded(values: npt.NDArray[np.float32], kind: int) -> bytes:
    if kind == Q8_0_TENSOR:
        blocks = values.reshape(-1, 32)
        scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
        whole = np.round(blocks / scales.astype(np.float32)).astype(np.int8)
        return np.concatenate([scales.view(np.int8), whole], axis=1).tobytes()
    return values.astype(np.float16 if kind == F16_TENSOR else np.float32).tobytes()
