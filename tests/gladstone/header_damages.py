"""Damage to a valid GGUF header, and the text that the error must contain."""

import struct
from collections.abc import Callable

from tests.gladstone.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Array,
    Gguf,
    TensorEntry,
    default_keys,
    vocabulary,
)  # fmt: skip

Damage = Callable[[Gguf], object]


def replace_tensor(**changes: object) -> Damage:
    return lambda file: file.tensors.__setitem__(0, TensorEntry(**changes))  # type: ignore[arg-type]


def each(*steps: Damage) -> Damage:
    """All of them, one after the other."""

    def damage(file: Gguf) -> None:
        for step in steps:
            step(file)

    return damage


def put(key: str, kind: int, value: object) -> Damage:
    return lambda file: file.set(key, kind, value)


DAMAGE: dict[str, tuple[Damage, str]] = {
    "version 1": (lambda f: setattr(f, "version", 1), "version 1; versions 2 and 3"),
    "big-endian": (lambda f: setattr(f, "version", 0x03000000), "version 50331648; versions 2 and 3 (little-endian)"),
    "absurd tensor count": (lambda f: setattr(f, "tensor_count", 2**62), "tensors and"),
    "absurd key count": (lambda f: setattr(f, "key_count", 2**63), "tensors and"),
    "one tensor more": (lambda f: setattr(f, "tensor_count", 3), "tensor '' has 0 dimensions"),
    "one key more": (lambda f: setattr(f, "key_count", 12), "the description of tensor 1 claims"),
    "one key less": (
        lambda f: setattr(f, "key_count", 10),
        "tensor 'tokenizer.ggml.eos_token_id' has the unknown type",
    ),
    "no keys": (lambda f: setattr(f, "keys", []), "it does not name an architecture"),
    "architecture that is a number": (lambda f: f.set("general.architecture", U32, 1), "does not name an architecture"),
    "key twice": (lambda f: f.keys.append(("general.name", STRING, "Two")), "the key 'general.name' occurs twice"),
    "absurd key length": (
        lambda f: setattr(f, "keys", [("k" * 70_000, U8, 1)]),
        "claims 70,000 bytes, more than 65,535",
    ),
    "unknown value kind": (lambda f: f.set("x", 13, b""), "'x' has the unknown value type 13"),
    "neither true nor false": (lambda f: f.set("x", BOOL, b"\x02"), "'x' should be true or false and is 2"),
    "absurd text length": (
        lambda f: f.set("x", STRING, struct.pack("<Q", 2**63)),
        "'x' claims 9,223,372,036,854,775,808",
    ),
    "absurd array of numbers": (lambda f: f.set("x", ARRAY, Array(U64, [1], 2**60)), "more than the rest of the file"),
    "absurd array of texts": (
        lambda f: f.set("x", ARRAY, Array(STRING, ["a"], 2**60)),
        "more than the rest of the file",
    ),
    "absurd array of truths": (lambda f: f.set("x", ARRAY, Array(BOOL, [1], 2**40)), "more than the rest of the file"),
    "too many numbers": (lambda f: f.set("x", ARRAY, Array(U8, [1] * 65_537)), "'x' claims 65,537 values, expected no"),
    "array of odd truths": (lambda f: f.set("x", ARRAY, Array(BOOL, [1, 2, 0])), "should hold true or false only"),
    "absurd text in an array": (
        lambda f: f.set("x", ARRAY, struct.pack("<IQQ", STRING, 1, 2**63)),
        "claims 9,223,372,036,854,775,808 bytes for text 1, more than the file has",
    ),
    "array of an unknown kind": (lambda f: f.set("x", ARRAY, Array(99, [], 1)), "'x' has the unknown value type 99"),
    "arrays in arrays": (
        lambda f: f.set("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 30 + struct.pack("<IQ", U8, 0)),
        "'x' holds arrays inside an array",
    ),
    "key without a name": (lambda f: f.keys.append(("", U8, 1)), "key 12 of 12 has no name"),
    "alignment 0": (lambda f: f.set("general.alignment", U32, 0), "alignment 0 is not a power of two"),
    "alignment 48": (lambda f: f.set("general.alignment", U32, 48), "alignment 48 is not a power of two"),
    "alignment that is a text": (
        lambda f: f.set("general.alignment", STRING, "32"),
        "general.alignment is '32', of the type string, expected u32",
    ),
    "alignment that is a fraction": (
        lambda f: f.set("general.alignment", F32, 32.0),
        "general.alignment is 32.0, of the type f32, expected u32",
    ),
    "tensor twice": (
        lambda f: f.tensors.__setitem__(1, TensorEntry(offset=512)),
        "tensor 'token_embd.weight' occurs twice",
    ),
    "tensor name too long": (replace_tensor(name="n" * 64), "claims 64 bytes, more than 63"),
    "tensor without dimensions": (replace_tensor(shape=()), "tensor 'token_embd.weight' has 0 dimensions"),
    "tensor of five dimensions": (replace_tensor(shape=(2,) * 5), "tensor 'token_embd.weight' has 5 dimensions"),
    "tensor of no size": (replace_tensor(shape=(0, 4)), "impossible shape (0, 4)"),
    "tensor of absurd size": (replace_tensor(shape=(2**40, 2**40)), "after the file's end: the file is cut short"),
    "unknown tensor type": (replace_tensor(kind=200), "200"),
    "blocks that do not fit": (replace_tensor(shape=(33, 4), kind=2), "of type Q4_0 has the impossible shape (33, 4)"),
    "offset outside": (replace_tensor(offset=1 << 40), "after the file's end"),
    "offset not aligned": (replace_tensor(offset=16), "starts at the impossible offset 16"),
    "tensors over each other": (
        lambda f: f.tensors.__setitem__(1, TensorEntry("output_norm.weight", (32,), 0, 256)),
        "tensor 'output_norm.weight' starts at the impossible offset 256",
    ),
    "data cut short": (lambda f: setattr(f, "data", f.data[:-1]), "ends 1 bytes after the file's end"),
    "no data": (lambda f: setattr(f, "data", b""), "the file is cut short"),
    "token twice": (
        lambda f: setattr(f, "keys", default_keys()[:5] + vocabulary(["<s>", "</s>", "a", "a"])),
        "the vocabulary holds 'a' twice",
    ),
    "vocabulary of numbers": (
        lambda f: f.set("tokenizer.ggml.tokens", ARRAY, Array(I32, [1, 2, 3, 4])),
        "its vocabulary is not a list of texts",
    ),
    "vocabulary that is a text": (lambda f: f.set("tokenizer.ggml.tokens", STRING, "ab"), "is not a list of texts"),
    "too few token types": (
        lambda f: f.set("tokenizer.ggml.token_type", ARRAY, Array(I32, [1] * 3)),
        "tokenizer.ggml.token_type does not have one entry for each of 4 tokens",
    ),
    "too many scores": (
        lambda f: f.set("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * 5)),
        "tokenizer.ggml.scores does not have one entry for each of 4 tokens",
    ),
    "token id outside": (
        lambda f: f.set("tokenizer.ggml.eos_token_id", U32, 4),
        "tokenizer.ggml.eos_token_id is 4, outside the vocabulary of 4",
    ),
    "token id below zero": (
        lambda f: f.set("tokenizer.ggml.unknown_token_id", I32, -1),
        "tokenizer.ggml.unknown_token_id is -1, outside",
    ),
    "token id that is a text": (lambda f: f.set("tokenizer.ggml.bos_token_id", STRING, "0"), "is '0', outside"),
    "context length that is a text": (
        lambda f: f.set("llama.context_length", STRING, "long"),
        "llama.context_length is 'long', expected a number from 1 to 4,294,967,295",
    ),
    "no layers": (lambda f: f.set("llama.block_count", U32, 0), "block_count is 0, expected a number from 1 to 512"),
    "absurd layers": (lambda f: f.set("llama.block_count", U32, 513), "block_count is 513, expected a number from 1"),
    "layers that are a text": (lambda f: f.set("llama.block_count", STRING, "2"), "block_count is '2', expected"),
    "absurd experts": (
        lambda f: f.set("llama.expert_count", U32, 100_000),
        "it claims 100,000 experts, 0 of them used",
    ),
    "experts without use": (lambda f: f.set("llama.expert_count", U32, 8), "it claims 8 experts, 0 of them used"),
    "use without experts": (
        lambda f: f.set("llama.expert_used_count", ARRAY, Array(U32, [0, 2])),
        "it claims 0 experts, 2 of them used",
    ),
    "experts that are a text": (
        lambda f: f.set("llama.expert_count", STRING, "8"),
        "llama.expert_count is '8', expected",
    ),
    "epsilon that is no number": (
        lambda f: f.set("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
        "llama.attention.layer_norm_rms_epsilon is nan, expected a small positive number",
    ),
    "epsilon below zero": (
        lambda f: f.set("llama.attention.layer_norm_rms_epsilon", F32, -0.5),
        "llama.attention.layer_norm_rms_epsilon is -0.5",
    ),
    "unknown rope scaling": (
        lambda f: f.set("llama.rope.scaling.type", STRING, "weird"),
        "llama.rope.scaling.type is 'weird', expected none, linear, yarn, longrope",
    ),
    "rope scaling that is a list": (
        lambda f: f.set("llama.rope.scaling.type", ARRAY, Array(STRING, ["yarn"])),
        "llama.rope.scaling.type is ['yarn']",
    ),
    "offset with a gap": (
        each(
            lambda f: f.tensors.__setitem__(1, TensorEntry("output_norm.weight", (32,), 0, 512 + 64)),
            lambda f: setattr(f, "data", bytes(1024)),
        ),
        "'output_norm.weight' starts at the impossible offset 576, expected 512",
    ),
    "token up to its NUL twice": (
        lambda f: f.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, ["<s>", "</s>", "a\0b", "a"])),
        "the vocabulary holds 'a' twice",
    ),
    "token without end": (
        lambda f: f.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, ["<s>", "</s>", "a", "b" * 5000])),
        "the vocabulary holds a token of 5,000 characters",
    ),
    "token by the name of an empty one": (
        lambda f: f.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, ["<s>", "[EMPTY_2]", "", "a"])),
        "the vocabulary holds '[EMPTY_2]' twice",
    ),
    "scores that are no fractions": (
        lambda f: f.set("tokenizer.ggml.scores", ARRAY, Array(F64, [0.0] * 4)),
        "tokenizer.ggml.scores is [0.0, 0.0, 0.0, 0.0], of the type f64 array, expected f32 or i32 array",
    ),
    "scores that are no numbers": (
        lambda f: f.set("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0, 0.0, float("nan"), 0.0])),
        "tokenizer.ggml.scores holds a number that is not finite",
    ),
    "unknown type of token": (
        lambda f: f.set("tokenizer.ggml.token_type", ARRAY, Array(I32, [1, 1, 7, 1])),
        "tokenizer.ggml.token_type holds 7, which is not a token type",
    ),
    "merge of one part": (
        lambda f: f.set("tokenizer.ggml.merges", ARRAY, Array(STRING, ["a b", "ab"])),
        "merge 2 of 2 is 'ab', expected two parts",
    ),
    "merges of numbers": (
        lambda f: f.set("tokenizer.ggml.merges", ARRAY, Array(I32, [1])),
        "tokenizer.ggml.merges is [1], of the type i32 array, expected string array",
    ),
    "forbidden token outside": (
        lambda f: f.set("tokenizer.ggml.suppress_tokens", ARRAY, Array(I32, [0, 4])),
        "tokenizer.ggml.suppress_tokens names tokens outside the vocabulary of 4",
    ),
    "end tokens that are one number": (
        lambda f: f.set("tokenizer.ggml.eos_token_ids", U32, 1),
        "tokenizer.ggml.eos_token_ids names tokens outside the vocabulary of 4",
    ),
    "first token of an answer outside": (
        lambda f: f.set("llama.decoder_start_token_id", U32, 9),
        "llama.decoder_start_token_id is 9, outside the vocabulary of 4",
    ),
    "no token for the unknown": (
        each(
            lambda f: setattr(f, "keys", [key for key in f.keys if key[0] != "tokenizer.ggml.scores"]),
            put("tokenizer.ggml.model", STRING, "t5"),
            put("tokenizer.ggml.tokens", ARRAY, Array(STRING, ["a", "b"])),
            put("tokenizer.ggml.token_type", ARRAY, Array(I32, [1, 1])),
        ),
        "the vocabulary of 2 has no token for unknown text",
    ),
    "template that is a number": (
        lambda f: f.set("tokenizer.chat_template", U32, 5),
        "tokenizer.chat_template is 5, of the type u32, expected string",
    ),
    "name that is a number": (lambda f: f.set("general.name", U32, 5), "general.name is 5, of the type u32"),
    "context length of 64 bits": (
        lambda f: f.set("llama.context_length", U64, 128),
        "llama.context_length is 128, of the type u64, expected u32",
    ),
    "no width": (lambda f: f.set("llama.embedding_length", U32, 0), "embedding_length is 0, expected a number from 1"),
    "width that the tensors have not": (
        lambda f: f.set("llama.embedding_length", U32, 64),
        "tensor 'token_embd.weight' has the shape (32, 4), expected (64, 4): width and vocabulary",
    ),
    "vocabulary that the tensors have not": (
        replace_tensor(shape=(64, 2)),
        "tensor 'token_embd.weight' has the shape (64, 2), expected (64, 4): width and vocabulary",
    ),
    "a layer too many": (
        each(put("llama.block_count", U32, 2), replace_tensor(name="blk.2.attn_q.weight")),
        "it holds the tensor 'blk.2.attn_q.weight', but only 2 layers",
    ),
    "heads that do not divide the width": (
        each(put("llama.embedding_length", U32, 32), put("llama.attention.head_count", U32, 5)),
        "a width of 32 cannot be divided among 5 attention heads",
    ),
    "heads that share unevenly": (
        each(put("llama.attention.head_count", U32, 4), put("llama.attention.head_count_kv", U32, 3)),
        "4 attention heads cannot share 3 key-value heads",
    ),
    "heads of too few layers": (
        each(put("llama.block_count", U32, 2), put("llama.attention.head_count", ARRAY, Array(U32, [4]))),
        "llama.attention.head_count has 1 entries for 2 layers",
    ),
    "absurd heads of a layer": (
        each(put("llama.block_count", U32, 2), put("llama.attention.head_count", ARRAY, Array(I32, [4, -4]))),
        "llama.attention.head_count holds -4, expected numbers from 0 to 16,384",
    ),
    "absurd inner width": (
        lambda f: f.set("llama.feed_forward_length", U32, 2**31),
        "llama.feed_forward_length is 2147483648, expected a number from 0 to 16,777,216",
    ),
    "more rotated than there is": (
        each(put("llama.attention.key_length", U32, 16), put("llama.rope.dimension_count", U32, 18)),
        "RoPE cannot rotate 18 dimensions of attention heads of 16",
    ),
    "rope base of nothing": (
        lambda f: f.set("llama.rope.freq_base", F32, 0.0),
        "freq_base is 0.0, expected a positive",
    ),
    "endless rope scaling": (
        lambda f: f.set("llama.rope.scaling.factor", F32, float("inf")),
        "llama.rope.scaling.factor is inf, expected a finite number",
    ),
    "unknown pooling": (
        lambda f: f.set("llama.pooling_type", U32, 9),
        "llama.pooling_type is 9, expected a number from",
    ),
    "groups of experts": (
        each(
            put("llama.expert_count", U32, 8),
            put("llama.expert_used_count", U32, 2),
            put("llama.expert_group_count", U32, 3),
        ),
        "it claims 8 experts in 3 groups, of which 0 are used",
    ),
    "part of no model": (
        each(put("split.count", U16, 2), put("split.no", U16, 2)),
        "it claims to be part 3 of 2",
    ),
    "part that is a text": (lambda f: f.set("split.no", STRING, "1"), "split.no is '1', of the type string, expected"),
    "SentencePiece without bytes": (
        lambda f: f.set("tokenizer.ggml.model", STRING, "llama"),
        "the vocabulary has no token for the byte 0x00",
    ),
}
