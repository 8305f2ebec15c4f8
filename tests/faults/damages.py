"""Kinds of damage to a GGUF: each takes a sound file and returns bytes that a disk, a network or a foe could leave."""

import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.gladstone.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Array,
    Gguf,
    TensorEntry,
)

Damage = Callable[[Gguf, random.Random], bytes]
DAMAGES: dict[str, Damage] = {}
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
ODD_SIZES = (0, 1, 2, 3, 5, 7, 31, 33, 63, 65, 255, 512, 513, 4096, 65_535, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
ODD_FRACTIONS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, -0.0, 1e-45, 1e30, 3.4e38)
ARCHITECTURES = (
    "gpt2",
    "qwen2",
    "mamba",
    "clip",
    "bert",
    "t5",
    "t5encoder",
    "rwkv6",
    "gemma3",
    "phi3",
    "falcon",
    "x",
    "",
)


def damage(name: str) -> Callable[[Damage], Damage]:
    """Enter a function under its name."""

    def enter(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return enter


def keys_of(file: Gguf, *kinds: int) -> list[int]:
    """Where the keys with values of these kinds stand."""
    return [number for number, (_, kind, _) in enumerate(file.keys) if kind in kinds]


def change(file: Gguf, number: int, value: Any, kind: int | None = None) -> None:
    """Give a key another value, and type."""
    name, old, _ = file.keys[number]
    file.keys[number] = (name, old if kind is None else kind, value)


def value_of(file: Gguf, name: str) -> Any:
    """The value of a key, None if there is none."""
    return next((value for key, _, value in file.keys if key == name), None)


def parts(file: Gguf) -> dict[str, tuple[int, int]]:
    """Where the parts of the file begin and end."""
    sections = file.sections()
    lengths = [len(section) for section in sections]
    keys_end = 4 + 3 * len(file.keys)
    edges = [0, sum(lengths[:4]), sum(lengths[:keys_end]), sum(lengths[:-2]), sum(lengths)]
    names = ("header", "keys", "tensor descriptions", "data")
    return dict(zip(names, itertools.pairwise(edges), strict=True))


def flip(content: bytes, begin: int, end: int, draw: random.Random) -> bytes:
    """A few bits of a part turned over."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        damaged[draw.randrange(begin, end)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


@damage("other magic")
def _magic(file: Gguf, draw: random.Random) -> bytes:
    file.magic = draw.choice(
        [b"FUGG", b"GGML", b"ggjt", b"gguf", b"PK\3\4", b"\0\0\0\0", b"GGU", b"<htm", draw.randbytes(4)]
    )
    return file.content()


@damage("version, byte order")
def _version(file: Gguf, draw: random.Random) -> bytes:
    content = bytearray(file.content())
    if draw.random() < 0.3:
        content[4:24] = struct.pack(">IQQ", 3, len(file.tensors), len(file.keys))
    else:
        content[4:8] = struct.pack("<I", draw.choice([0, 1, 4, 5, 3 << 24, 2**31, 2**32 - 1]))
    return bytes(content)


@damage("counts")
def _counts(file: Gguf, draw: random.Random) -> bytes:
    name = draw.choice(["tensor_count", "key_count"])
    real = len(file.tensors if name == "tensor_count" else file.keys)
    setattr(file, name, draw.choice([0, 1, real - 1, real + 1, 2 * real, 65_536, *HUGE]))
    return file.content()


@damage("cut at a border of sections")
def _cut_at_border(file: Gguf, draw: random.Random) -> bytes:
    content = file.content()
    borders = [*itertools.accumulate(map(len, file.sections()))][:-1]
    return content[: max(0, draw.choice(borders) + draw.choice([-1, 0, 0, 1]))]


@damage("cut anywhere")
def _cut(file: Gguf, draw: random.Random) -> bytes:
    content = file.content()
    begin, _ = parts(file)["data"]
    return content[: draw.randrange(begin) if draw.random() < 0.5 else draw.randrange(begin, len(content))]


def _flips(part: str) -> Damage:
    def flips(file: Gguf, draw: random.Random) -> bytes:
        return flip(file.content(), *parts(file)[part], draw)

    return flips


for _part in ("header", "keys", "tensor descriptions", "data"):
    DAMAGES[f"bits of the {_part}"] = _flips(_part)


@damage("a stretch overwritten")
def _overwritten(file: Gguf, draw: random.Random) -> bytes:
    content = bytearray(file.content())
    begin, end = parts(file)[draw.choice(["keys", "tensor descriptions", "data"])]
    at, length = draw.randrange(begin, end), draw.choice([4, 8, 64, 512, 4096])
    filling = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])
    content[at : at + length] = filling[: max(0, len(content) - at)]
    return bytes(content)


@damage("type of a value")
def _value_type(file: Gguf, draw: random.Random) -> bytes:
    number = draw.choice(keys_of(file, U32, F32, BOOL, STRING))
    kind = draw.choice([U8, U16, I32, U32, F32, F64, BOOL, STRING, ARRAY, U64, I64, 13, 99, 2**31])
    value = {STRING: "1", F32: 1.0, F64: 1.0, ARRAY: Array(U32, [1])}.get(kind, 1)
    raw_only = kind not in (U8, U16, I32, U32, F32, F64, BOOL, STRING, ARRAY, U64, I64)
    change(file, number, b"\1\0\0\0" if raw_only or draw.random() < 0.3 else value, kind)
    return file.content()


@damage("length of a text")
def _text_length(file: Gguf, draw: random.Random) -> bytes:
    number = draw.choice(keys_of(file, STRING))
    text = file.keys[number][2].encode()
    length = draw.choice([0, max(0, len(text) - 1), len(text) + 1, len(text) + 1000, *HUGE])
    change(file, number, struct.pack("<Q", length) + text)
    return file.content()


@damage("length of a key")
def _key_length(file: Gguf, draw: random.Random) -> bytes:
    number = draw.randrange(len(file.keys))
    name, kind, value = file.keys[number]
    file.keys[number] = (draw.choice(["", name[:-1], name + "\0", name * 2000, "\udcff" + name]), kind, value)
    return file.content()


@damage("length of an array")
def _array_length(file: Gguf, draw: random.Random) -> bytes:
    number = draw.choice(keys_of(file, ARRAY))
    array = file.keys[number][2]
    real = len(array.values)
    change(file, number, replace(array, count=draw.choice([0, real - 1, real + 1, 2 * real, *HUGE])))
    return file.content()


@damage("type of an array's items")
def _array_type(file: Gguf, draw: random.Random) -> bytes:
    number = draw.choice(keys_of(file, ARRAY))
    count = len(file.keys[number][2].values)
    kind = draw.choice([U8, U16, U32, I32, F32, F64, BOOL, STRING, U64])
    values = [str(index) for index in range(count)] if kind == STRING else [1] * count
    change(file, number, Array(kind, values))
    return file.content()


@damage("arrays in arrays")
def _nested(file: Gguf, draw: random.Random) -> bytes:
    depth = draw.choice([1, 2, 4, 30, 20_000])
    inner = draw.choice(
        [struct.pack("<IQ", U8, 0), struct.pack("<IQ", ARRAY, 2**40), struct.pack("<IQ", STRING, 2**40)]
    )
    nested = struct.pack("<IQ", ARRAY, 1) * depth + inner
    if draw.random() < 0.3:
        nested = struct.pack("<IQ", ARRAY, 100_000) + struct.pack("<IQ", U8, 0) * 100_000
    if draw.random() < 0.5:
        change(file, draw.choice(keys_of(file, ARRAY)), nested)
    else:
        file.keys.append(("nested", ARRAY, nested))
    return file.content()


@damage("a key twice, or missing")
def _key_twice(file: Gguf, draw: random.Random) -> bytes:
    number = draw.randrange(len(file.keys))
    if draw.random() < 0.4:
        file.keys.append(file.keys[number])
    else:
        del file.keys[number]
    return file.content()


@damage("a tensor twice, or missing")
def _tensor_twice(file: Gguf, draw: random.Random) -> bytes:
    one, two = draw.sample(range(len(file.tensors)), 2)
    choice = draw.randrange(3)
    if choice == 0:
        file.tensors[one] = replace(file.tensors[one], name=file.tensors[two].name)
    elif choice == 1:
        del file.tensors[one]
    else:
        file.tensors.append(TensorEntry("blk.7.extra.weight", (32,), 0, len(file.data)))
        file.data += bytes(128)
    return file.content()


@damage("sizes")
def _sizes(file: Gguf, draw: random.Random) -> bytes:
    sizes = [number for number in keys_of(file, U32) if not file.keys[number][0].startswith(("tokenizer", "general"))]
    for number in draw.sample(sizes, draw.choice([1, 1, 2])):
        change(file, number, draw.choice(ODD_SIZES))
    return file.content()


@damage("sizes that are seldom given")
def _seldom(file: Gguf, draw: random.Random) -> bytes:
    architecture = value_of(file, "general.architecture")
    names = (
        "attention.key_length", "attention.value_length", "rope.dimension_count", "expert_count", "expert_used_count",
        "expert_group_count", "attention.sliding_window", "pooling_type", "nextn_predict_layers", "decoder_block_count",
        "leading_dense_block_count", "vocab_size", "embedding_length_out", "rope.scaling.original_context_length",
        "attention.relative_buckets_count", "attention.head_count_kv", "ssm.conv_kernel", "classifier.pooling_type",
    )  # fmt: skip
    for name in draw.sample(names, draw.choice([1, 2])):
        file.set(f"{architecture}.{name}", U32, draw.choice(ODD_SIZES))
    return file.content()


@damage("sizes by layer")
def _by_layer(file: Gguf, draw: random.Random) -> bytes:
    architecture = value_of(file, "general.architecture")
    name = draw.choice(["attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count"])
    kind, length = draw.choice([I32, U32, U32, F32, STRING, U64]), draw.choice([0, 1, 2, 2, 3, 512, 513])
    odd = ["4"] if kind == STRING else [0, 1, 2, 3, 4, 128] if kind != U32 else [0, 1, 2, 3, 4, 128, 2**32 - 1]
    file.set(f"{architecture}.{name}", ARRAY, Array(kind, [draw.choice(odd) for _ in range(length)]))
    return file.content()


@damage("fractions")
def _fractions(file: Gguf, draw: random.Random) -> bytes:
    architecture = value_of(file, "general.architecture")
    names = (
        "rope.freq_base",
        "rope.scaling.factor",
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
    )
    more = (
        "logit_scale",
        "attention.scale",
        "final_logit_softcapping",
        "attention.max_alibi_bias",
        "attention.clamp_kqv",
    )
    file.set(f"{architecture}.{draw.choice(names + more)}", F32, draw.choice(ODD_FRACTIONS))
    if draw.random() < 0.2:
        file.set(f"{architecture}.rope.scaling.type", STRING, draw.choice(["yarn", "longrope", "linear", "x", ""]))
    return file.content()


@damage("alignment")
def _alignment(file: Gguf, draw: random.Random) -> bytes:
    file.set(
        "general.alignment",
        draw.choice([U32, U32, U32, I32, U64]),
        draw.choice([0, 1, 3, 8, 13, 16, 48, 64, 4096, 2**31 - 1]),
    )
    return file.content()


@damage("offsets of tensors")
def _offsets(file: Gguf, draw: random.Random) -> bytes:
    number = draw.randrange(len(file.tensors))
    tensor = file.tensors[number]
    offset = draw.choice([tensor.offset + 1, tensor.offset + 32, max(0, tensor.offset - 32), 0, len(file.data), *HUGE])
    file.tensors[number] = replace(tensor, offset=offset)
    return file.content()


@damage("shapes of tensors")
def _shapes(file: Gguf, draw: random.Random) -> bytes:
    number = draw.randrange(len(file.tensors))
    tensor = file.tensors[number]
    shapes = [
        tensor.shape[::-1], (), (0, *tensor.shape[1:]), (*tensor.shape, 1), (*tensor.shape, 2), (1,) * 5, (2**62, 4),
        (2**32, 2**32), (4, 2**30 - 1, 2**30 + 1), (2**63, 1), (tensor.shape[0] // 2, *tensor.shape[1:]), (2**64 - 32,),
        (tensor.shape[0] * 2, *tensor.shape[1:]), (32, -(-tensor.shape[0] // 32) * 2),
    ]  # fmt: skip
    file.tensors[number] = replace(tensor, shape=draw.choice(shapes))
    return file.content()


@damage("types of tensors")
def _tensor_types(file: Gguf, draw: random.Random) -> bytes:
    number = draw.randrange(len(file.tensors))
    kinds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 19, 20, 24, 25, 26, 27, 28, 30, 31, 36, 39, 200, 2**31]
    file.tensors[number] = replace(file.tensors[number], kind=draw.choice(kinds))
    return file.content()


@damage("another type of the same size")
def _same_size(file: Gguf, draw: random.Random) -> bytes:
    twins = {0: (26,), 1: (30, 25), 8: (8,)}
    number = draw.randrange(len(file.tensors))
    file.tensors[number] = replace(file.tensors[number], kind=draw.choice(twins[file.tensors[number].kind]))
    return file.content()


@damage("names of tensors")
def _names(file: Gguf, draw: random.Random) -> bytes:
    one, two = draw.sample(range(len(file.tensors)), 2)
    first, second = file.tensors[one], file.tensors[two]
    if draw.random() < 0.5:
        file.tensors[one], file.tensors[two] = replace(first, name=second.name), replace(second, name=first.name)
    else:
        name = draw.choice(
            ["", "x", "n" * 64, "n" * 63, first.name + "\0", "blk.99.attn_q.weight", "\udcff", "output.weight"]
        )
        file.tensors[one] = replace(first, name=name)
    return file.content()


@damage("weights that are no numbers")
def _weights(file: Gguf, draw: random.Random) -> bytes:
    tensor = draw.choice(file.tensors)
    patterns = {0: "<f", 1: "<e", 8: "<e"}
    number = draw.choice([float("nan"), float("inf"), float("-inf")])
    raw = struct.pack(patterns[tensor.kind], number)
    data = bytearray(file.data)
    for at in range(draw.choice([1, 1, 8])):
        begin = tensor.offset + at * (34 if tensor.kind == 8 else len(raw))
        data[begin : begin + len(raw)] = raw
    file.data = bytes(data)
    return file.content()


@damage("weights that are wrong")
def _wrong_weights(file: Gguf, draw: random.Random) -> bytes:
    choice = draw.randrange(3)
    if choice == 0:
        file.data = bytes(len(file.data))
    elif choice == 1:
        file.data = draw.randbytes(len(file.data))
    else:
        at = draw.randrange(0, len(file.data), 512)
        file.data = file.data[:at] + draw.randbytes(512) + file.data[at + 512 :]
    return file.content()


@damage("parts of a split model")
def _splits(file: Gguf, draw: random.Random) -> bytes:
    kind = draw.choice([U16, U16, U32, STRING])
    for name in draw.sample(["split.no", "split.count", "split.tensors.count"], draw.choice([1, 2, 3])):
        file.set(name, kind, "2" if kind == STRING else draw.choice([0, 1, 2, 3, 65_535]))
    return file.content()


@damage("another architecture")
def _architecture(file: Gguf, draw: random.Random) -> bytes:
    old, new = value_of(file, "general.architecture"), draw.choice(ARCHITECTURES)
    file.set("general.architecture", STRING, new)
    if draw.random() < 0.7:
        file.keys = [
            (key.replace(f"{old}.", f"{new}.") if key.startswith(old) else key, *rest) for key, *rest in file.keys
        ]
    return file.content()


@damage("a monstrous header")
def _monstrous(file: Gguf, draw: random.Random) -> bytes:
    choice = draw.randrange(6)
    if choice == 0:
        file.keys += [(f"k{number}", U8, 1) for number in range(draw.choice([4_000, 60_000]))]
    elif choice == 1:
        file.keys.append(("tokenizer.x", ARRAY, struct.pack("<IQ", STRING, 1_000_000) + bytes(8_000_000)))
    elif choice == 2:
        file.keys.append(("tokenizer.x", ARRAY, struct.pack("<IQ", U16, 4_000_000) + b"\1\2" * 4_000_000))
    elif choice == 3:
        file.keys += [(f"x{number}", ARRAY, Array(U8, [1] * 60_000)) for number in range(20)]
    elif choice == 4:
        file.keys.append(("x", STRING, "🧑" + "x" * 6_000_000))
    else:
        file.keys.append(
            ("tokenizer.x", ARRAY, struct.pack("<IQ", STRING, 800_000) + (struct.pack("<Q", 2) + b"ab") * 800_000)
        )
    return file.content()


@damage("bytes behind the end")
def _behind(file: Gguf, draw: random.Random) -> bytes:
    return file.content() + draw.randbytes(draw.choice([1, 31, 32, 4096]))


def damaged(name: str, make: Callable[[], Gguf], draw: random.Random) -> bytes:
    """Bytes with this kind of damage, different from the sound ones."""
    sound = make().content()
    while (content := DAMAGES[name](make(), draw)) == sound:
        pass
    return content
