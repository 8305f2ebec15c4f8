import ctypes
import gzip
import io
import itertools
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from gladstone.chat.template import template_sha256
from gladstone.errors import ArtifactError
from gladstone.gguf.check_model import DamagedError, Keys
from gladstone.gguf.check_vocabulary import check_charsmap
from gladstone.gguf.header import read_header, read_info
from gladstone.gguf.types import FILE_TYPES, TENSOR_TYPES, Pooling, TokenType, ValueType
from gladstone.llamacpp.library import library
from tests.faults.tiny_ggufs import MODELS, tiny_t5
from tests.gladstone.gguf_files import (
    ARRAY,
    I32,
    STRING,
    U8,
    U16,
    U32,
    Array,
    Gguf,
    TensorEntry,
)
from tests.gladstone.header_damages import DAMAGE, Damage


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
    file.set("texts", ARRAY, Array(STRING, ["é", ""]))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.content())
    metadata = read_header(path).metadata
    for kind, value in values.items():
        assert metadata[f"one.{kind}"] == value
        assert metadata[f"many.{kind}"] == [value, value]
    assert metadata["one.7"] is True
    assert metadata["texts"] == ["é", ""]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_is_followed(tmp_path: Path, alignment: int) -> None:
    file = Gguf(alignment=alignment, tensors=[TensorEntry()], data=bytes(512))
    file.set("general.alignment", U32, alignment)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.content())
    assert read_header(path).tensors[0].size_bytes == 512


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line_that_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    file = Gguf()
    damage(file)
    begin_s = time.process_time()
    told = refusal(tmp_path / "tiny.gguf", file.content())
    assert time.process_time() - begin_s < 5
    assert told.startswith("not a usable GGUF file: ")
    assert message in told


def test_a_file_cut_at_any_boundary_of_its_sections_is_refused(tmp_path: Path) -> None:
    sections = Gguf().sections()
    content = b"".join(sections)
    for end in itertools.accumulate(map(len, sections[:-1])):
        if end < len(content):
            told = refusal(tmp_path / "tiny.gguf", content[:end])
            assert "cut short" in told


def written(path: Path, file: Gguf) -> Path:
    path.write_bytes(file.content())
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_of_each_kind_is_sound(name: str, tmp_path: Path) -> None:
    info = read_info(written(tmp_path / "tiny.gguf", MODELS[name]()))
    assert info.context_tokens == 256
    assert info.vocabulary > 32


def test_tokens_without_a_text_may_be_several(tmp_path: Path) -> None:
    """llama.cpp gives each a name of its own."""
    file = Gguf()
    file.set("tokenizer.ggml.tokens", ARRAY, Array(STRING, ["<s>", "", "", "a"]))
    assert read_info(written(tmp_path / "tiny.gguf", file)).vocabulary == 4


def test_sizes_may_vary_by_layer(tmp_path: Path) -> None:
    file = Gguf()
    file.set("llama.block_count", U32, 2)
    file.set("llama.attention.head_count", ARRAY, Array(U32, [4, 8]))
    file.set("llama.attention.head_count_kv", ARRAY, Array(I32, [0, 2]))
    assert read_header(written(tmp_path / "tiny.gguf", file)).metadata["llama.attention.head_count"] == [4, 8]


def test_rules_that_rewrite_characters_are_walked_to_their_ends(tmp_path: Path) -> None:
    """Every bit of them is turned over once: what is then accepted, llama.cpp can follow for every text."""
    key = "tokenizer.ggml.precompiled_charsmap"
    file = tiny_t5()
    rules = list(next(value for name, _, value in file.keys if name == key).values)
    refused = 0
    path = tmp_path / "tiny.gguf"
    used = [at for at, byte in enumerate(rules) if byte]
    for at, bit in itertools.product(used, range(8)):
        changed = [*rules[:at], rules[at] ^ 1 << bit, *rules[at + 1 :]]
        keys = Keys({key: changed}, {key: ARRAY}, {key: U8})
        try:
            check_charsmap(keys)
        except DamagedError:
            refused += 1
    assert 0.3 < refused / (8 * len(used)) < 1
    file.set(key, ARRAY, Array(U8, rules[:5]))
    assert "of 5 bytes claims 6,144 of them for its rules" in refusal(path, file.content())


MONSTERS: dict[str, Damage] = {
    "a million empty texts": lambda f: f.set(
        "tokenizer.x", ARRAY, struct.pack("<IQ", STRING, 10**6) + bytes(8 * 10**6)
    ),
    "half a million short texts": lambda f: f.set(
        "tokenizer.x", ARRAY, struct.pack("<IQ", STRING, 500_000) + (struct.pack("<Q", 2) + b"ab") * 500_000
    ),
    "two million short texts": lambda f: f.set(
        "tokenizer.x", ARRAY, struct.pack("<IQ", STRING, 2_000_000) + (struct.pack("<Q", 2) + b"ab") * 2_000_000
    ),
    "two million numbers": lambda f: f.set(
        "tokenizer.x", ARRAY, struct.pack("<IQ", U16, 2 * 10**6) + b"ab" * 2 * 10**6
    ),
    "a text of wide letters": lambda f: f.set("x", STRING, "🧑" + "x" * 40_000_000),
    "many lists of numbers": lambda f: f.keys.extend(
        (f"x{n}", ARRAY, struct.pack("<IQ", U8, 60_000) + bytes(60_000)) for n in range(200)
    ),
    "many keys": lambda f: f.keys.extend((f"x{n}", U8, 7) for n in range(4_000)),
    "too many keys": lambda f: f.keys.extend((f"x{n}", U8, 7) for n in range(60_000)),
}
READ = """
import sys, time
from pathlib import Path
from gladstone.errors import ArtifactError
from gladstone.gguf.header import read_header
from gladstone.machine.host import peak_memory_bytes
before, begin_s = peak_memory_bytes(), time.process_time()
try:
    read_header(Path(sys.argv[1]))
except ArtifactError as error:
    assert "\\n" not in str(error)
print(time.process_time() - begin_s, peak_memory_bytes() - before)
"""


@pytest.mark.parametrize("name", MONSTERS)
def test_a_monstrous_header_takes_neither_time_nor_memory(name: str, tmp_path: Path) -> None:
    file = Gguf()
    MONSTERS[name](file)
    path = written(tmp_path / "tiny.gguf", file)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    spent_s, peak_bytes = map(float, done.stdout.split())  # processor time: other work is not the reader's
    assert spent_s < 10
    assert peak_bytes < 200_000_000 + path.stat().st_size


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", "b")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty, expected a GGUF model."),
        (b"<!DOCTYPE html>\n<html>", "expected a GGUF model, this is a web page."),
        ("é".encode() * 300, "expected a GGUF model, this is a text file."),
        (archive(), "expected a GGUF model, this is a zip archive."),
        (gzip.compress(b"GGUF", mtime=0), "expected a GGUF model, this is a gzip file."),
        (pickle.dumps([1], protocol=2), "expected a GGUF model, this is a Python pickle"),
        (b"\xde\xad\xbe\xef" * 9, "expected a GGUF model, this is not one (its first bytes are not 'GGUF')."),
        (b"FUGG" + b"\xff" * 99, "expected a GGUF model, this is not one (its first bytes are not 'GGUF')."),
        (b"G", "expected a GGUF model, this is a text file."),
    ],
)
def test_another_kind_of_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.gguf", content).startswith(message.removesuffix("."))


def test_no_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no\.gguf: no such model file\."):
        read_header(tmp_path / "no.gguf")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_header(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_a_pipe_is_not_waited_for_and_a_link_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_header(Path("/dev/zero"))
    (tmp_path / "link.gguf").symlink_to(written(tmp_path / "tiny.gguf", Gguf()))
    assert read_info(tmp_path / "link.gguf").architecture == "llama"


def test_three_hundred_random_damages_never_crash_the_reader(tmp_path: Path) -> None:
    content, path = Gguf().content(), tmp_path / "tiny.gguf"
    draw = random.Random(20_240_607)
    messages: list[str] = []
    begin_s = time.process_time()
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
    assert time.process_time() - begin_s < 20


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


def test_types_of_values_and_tokens_and_poolings_are_those_of_the_gguf_package() -> None:
    from gguf import constants

    short = {"UINT": "U", "INT": "I", "FLOAT": "F"}
    values = {re.sub("^(UINT|INT|FLOAT)", lambda found: short[found[0]], kind.name): kind.value
              for kind in constants.GGUFValueType}  # fmt: skip
    assert values == {kind.name: kind.value for kind in ValueType}
    tokens = {kind.name: kind.value for kind in constants.TokenType}
    assert tokens == {kind.name: kind.value for kind in TokenType if kind}  # llama.cpp's 0 stands for none
    poolings = {kind.name: kind.value for kind in constants.PoolingType}
    assert poolings == {kind.name: kind.value for kind in Pooling if kind >= 0}


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
