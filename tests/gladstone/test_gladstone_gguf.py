import ctypes
import gzip
import io
import itertools
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gladstone.errors import ArtifactError
from gladstone.gguf import FILE_TYPES, TENSOR_TYPES, read_header, read_info
from gladstone.llama import library
from gladstone.template import template_sha256
from tests.gladstone.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Array,
    Gguf,
    TensorEntry,
    default_keys,
    vocabulary,
)

Damage = Callable[[Gguf], object]


def refusal(path: Path, content: bytes) -> str:
    """The message for this content, checked to be one line that names the file."""
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_sound_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(Gguf().content())
    header = read_header(path)
    assert header.metadata["tokenizer.ggml.tokens"] == ["<s>", "</s>", "a", "b"]
    assert header.metadata["llama.context_length"] == 128
    assert [(tensor.name, tensor.shape, tensor.size_bytes) for tensor in header.tensors] == [
        ("token_embd.weight", (32, 4), 512),
        ("output_norm.weight", (32,), 128),
    ]
    info = read_info(path)
    assert (info.architecture, info.name, info.quantisation, info.parameters) == ("llama", "Tiny", "Q8_0", 160)
    assert (info.context_tokens, info.vocabulary, info.tensor_types) == (128, 4, {"F32": 2})
    assert info.template_sha256 == template_sha256("{{ messages[0].content }}")
    assert info.size_bytes == path.stat().st_size


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    file = Gguf(tensors=[], data=b"")
    values = {0: 255, 1: -1, 2: 65535, 3: -2, 4: 7, 5: -7, 6: 0.5, 7: 1, 10: 2**63, 11: -(2**62), 12: 1e300}
    for kind, value in values.items():
        file.set(f"one.{kind}", kind, value)
        file.set(f"many.{kind}", ARRAY, Array(kind, [value, value]))
    file.set("nested", ARRAY, Array(ARRAY, [Array(STRING, ["é"]), Array(U8, [])]))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.content())
    metadata = read_header(path).metadata
    for kind, value in values.items():
        assert metadata[f"one.{kind}"] == value
        assert metadata[f"many.{kind}"] == [value, value]
    assert metadata["one.7"] is True
    assert metadata["nested"] == [["é"], []]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_is_followed(tmp_path: Path, alignment: int) -> None:
    file = Gguf(alignment=alignment, tensors=[TensorEntry()], data=bytes(512))
    file.set("general.alignment", U32, alignment)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.content())
    assert read_header(path).tensors[0].size_bytes == 512


def replace_tensor(**changes: object) -> Damage:
    return lambda file: file.tensors.__setitem__(0, TensorEntry(**changes))  # type: ignore[arg-type]


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
    "key twice": (lambda f: f.keys.append(("general.name", STRING, "Two")), "the key 'general.name' is there twice"),
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
    "absurd array of arrays": (lambda f: f.set("x", ARRAY, Array(ARRAY, [], 2**40)), "more than the rest of the file"),
    "array of an unknown kind": (lambda f: f.set("x", ARRAY, Array(99, [], 1)), "'x' has the unknown value type 99"),
    "arrays in arrays in arrays": (
        lambda f: f.set("x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 30 + struct.pack("<IQ", U8, 0)),
        "'x' nests arrays more than 4 deep",
    ),
    "alignment 0": (lambda f: f.set("general.alignment", U32, 0), "alignment 0 is no power of two"),
    "alignment 48": (lambda f: f.set("general.alignment", U32, 48), "alignment 48 is no power of two"),
    "alignment that is a text": (
        lambda f: f.set("general.alignment", STRING, "32"),
        "alignment '32' is no power of two",
    ),
    "alignment that is a fraction": (
        lambda f: f.set("general.alignment", F32, 32.0),
        "alignment 32.0 is no power of two",
    ),
    "tensor twice": (
        lambda f: f.tensors.__setitem__(1, TensorEntry(offset=512)),
        "tensor 'token_embd.weight' is there twice",
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
        "llama.context_length is 'long', expected a number from 0 to 4,294,967,295",
    ),
    "no layers": (lambda f: f.set("llama.block_count", U32, 0), "block_count is 0, expected a number from 1 to 512"),
    "absurd layers": (lambda f: f.set("llama.block_count", U32, 513), "block_count is 513, expected a number from 1"),
    "layers that are a text": (lambda f: f.set("llama.block_count", STRING, "2"), "block_count is '2', expected"),
    "absurd experts": (lambda f: f.set("llama.expert_count", U32, 100_000), "it claims 100,000 experts and to use 0"),
    "experts without use": (lambda f: f.set("llama.expert_count", U32, 8), "it claims 8 experts and to use 0"),
    "use without experts": (
        lambda f: f.set("llama.expert_used_count", ARRAY, Array(U32, [0, 2])),
        "it claims 0 experts and to use 2 of them",
    ),
    "experts that are a text": (lambda f: f.set("llama.expert_count", STRING, "8"), "number of experts is '8'"),
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
    "SentencePiece without bytes": (
        lambda f: f.set("tokenizer.ggml.model", STRING, "llama"),
        "the vocabulary has no token for the byte 0x00",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    file = Gguf()
    damage(file)
    begin_s = time.perf_counter()
    told = refusal(tmp_path / "tiny.gguf", file.content())
    assert time.perf_counter() - begin_s < 1
    assert told.startswith("not a usable GGUF file: ")
    assert message in told


def test_a_file_cut_at_any_boundary_of_its_sections_is_refused(tmp_path: Path) -> None:
    sections = Gguf().sections()
    content = b"".join(sections)
    for end in itertools.accumulate(map(len, sections[:-1])):
        if end < len(content):
            told = refusal(tmp_path / "tiny.gguf", content[:end])
            assert "cut short" in told


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", "b")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty, expected a GGUF model."),
        (b"<!DOCTYPE html>\n<html>", "expected a GGUF model, this is a text file."),
        ("é".encode() * 300, "expected a GGUF model, this is a text file."),
        (archive(), "expected a GGUF model, this is a zip archive."),
        (gzip.compress(b"GGUF", mtime=0), "expected a GGUF model, this is a gzip file."),
        (pickle.dumps([1], protocol=2), "expected a GGUF model, this is a Python pickle."),
        (b"\xde\xad\xbe\xef" * 9, "expected a GGUF model, this is not one (its first bytes are not 'GGUF')."),
        (b"FUGG" + b"\xff" * 99, "expected a GGUF model, this is not one (its first bytes are not 'GGUF')."),
        (b"G", "expected a GGUF model, this is a text file."),
    ],
)
def test_another_kind_of_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.gguf", content) == message


def test_no_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no\.gguf: no such model file\."):
        read_header(tmp_path / "no.gguf")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_header(tmp_path)


def test_three_hundred_random_damages_never_crash_the_reader(tmp_path: Path) -> None:
    content, path = Gguf().content(), tmp_path / "tiny.gguf"
    draw = random.Random(20_240_607)
    messages: list[str] = []
    begin_s = time.perf_counter()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            read_info(path)
        except ArtifactError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 300
    assert not any("\n" in message for message in messages)
    assert time.perf_counter() - begin_s < 2


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    shared = [kind for kind in GGMLQuantizationType if kind.value in TENSOR_TYPES]
    assert len(shared) >= 30
    for kind in shared:
        if kind.name == "Q8_1":  # the package says 40; the block is two halfs and 32 bytes, and stands in no file
            continue
        assert TENSOR_TYPES[kind.value] == (kind.name, *GGML_QUANT_SIZES[kind])


def test_block_sizes_are_those_of_llama_cpp() -> None:
    ggml = library()._lib
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype, ggml.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    for number, (name, block, block_bytes) in TENSOR_TYPES.items():
        assert ggml.ggml_type_name(number).decode().upper() == name
        assert (ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == (block, block_bytes)


def test_file_types_are_those_of_the_gguf_package() -> None:
    from gguf.constants import LlamaFileType

    known = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    shared = FILE_TYPES.keys() & known.keys()
    assert {number: FILE_TYPES[number] for number in shared} == {number: known[number] for number in shared}
    assert FILE_TYPES.keys() - known.keys() <= {41}  # newer than the package


def test_the_embedded_model_is_read_as_what_it_is(embedded_gguf: Path) -> None:
    info = read_info(embedded_gguf)
    assert info.architecture == "llama"
    assert info.quantisation == "Q4_1"
    assert info.parameters == 134_515_008
    assert info.context_tokens == 8192
    assert info.vocabulary == 49_152
    assert info.size_bytes == embedded_gguf.stat().st_size
    assert sum(info.tensor_types.values()) == 272
    assert info.template is not None
    assert "<|im_start|>" in info.template


def test_the_embedded_model_cut_short_by_one_byte_is_refused(embedded_gguf: Path, tmp_path: Path) -> None:
    told = refusal(tmp_path / "cut.gguf", embedded_gguf.read_bytes()[:-1])
    assert "ends 1 bytes after the file's end: the file is cut short" in told
