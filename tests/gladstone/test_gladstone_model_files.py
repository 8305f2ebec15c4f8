"""Errors for files that users give in place of a model."""

import shlex
from pathlib import Path

import pytest

from gladstone.artifacts import Manifest, record_file, write_manifest
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, GladstoneError
from gladstone.gguf.header import MOST_CONTEXT_TOKENS, how_to_replace, read_generative_model, read_info, read_model
from gladstone.gguf.parts import describe_raw_part
from tests.faults.tiny_ggufs import tiny_bpe
from tests.gladstone.gguf_files import U32
from tests.gladstone.wrong_files import WRONG, gguf_folder, raw_parts, split, torch_zip, with_keys, written

# of each file: what it is, and what to do
SAID = {
    "imatrix": ("an importance matrix", "--imatrix {path}"),
    "old imatrix": ("an importance matrix", "--imatrix {path}"),
    "adapter": ("a LoRA adapter", "--lora {path}"),
    "control vector": ("a control vector", "--control-vector"),
    "mmproj": ("mmproj", "the model's own GGUF"),
    "last piece of a split": ("part 3 of 3", "give the first, tiny-00001-of-00003.gguf"),
    "split with a piece missing": ("the first of 3 parts", "tiny-00002-of-00003.gguf"),
    "first piece under another name": ("one of 3 parts", "rename it to model-00001-of-00003.gguf"),
    "pieces joined by cat": ("3 parts of a split model joined by `cat`", "llama-gguf-split --merge"),
    "first raw part": ("part 1 of 2 of tiny.gguf", "cat {folder}/tiny.gguf.part1of2 {folder}/tiny.gguf.part2of2 > "),
    "second raw part": ("part 2 of 2 of tiny.gguf", "cat {folder}/tiny.gguf.part1of2 {folder}/tiny.gguf.part2of2 > "),
    "download cut short": ("cut short, it has 225,816 of 226,816 bytes", "Download or copy it again"),
    "download of zeros": ("nothing but zeros", "Download it again"),
    "vocabulary only": ("a vocabulary without weights", "the model's own file"),
    "unknown architecture": ("architecture is 'qwen9'", "qwen3"),
    "image model": ("generates images", "models that generate text"),
    "text diffusion model": ("a diffusion model (dream)", "llama-diffusion-cli"),
    "speech model": ("a GGML file, the format of whisper.cpp", "as a GGUF"),
    "old ggml": ("a GGJT file", "as a GGUF"),
    "old lora": ("a GGLA file", "gladstone export lora"),
    "safetensors": ("weights in safetensors", "gladstone export gguf {folder}"),
    "safetensors adapter": ("a PEFT adapter", "gladstone export lora {folder}"),
    "pytorch": ("a PyTorch file", "gladstone export gguf"),
    "old pytorch": ("a Python pickle", "gladstone export gguf"),
    "onnx": ("an ONNX model", "gladstone export gguf"),
    "zip": ("a zip archive with model.gguf in it", "Unpack it"),
    "tar": ("a tar archive", "Unpack it"),
    "gzip": ("a gzip file", "Unpack it"),
    "html page": ("a web page", "download it again"),
    "git-lfs pointer": ("a git-LFS pointer", "git lfs pull"),
    "error of a server": ("a text file", "Invalid username"),
    "ollama manifest": ("an Ollama manifest", "{folder}/blobs/sha256-abab"),
    "modelfile": ("an Ollama Modelfile", "./tiny.gguf"),
    "config": ("the configuration of a model", "gladstone export gguf"),
    "model folder": ("a model's folder", "gladstone export gguf {path}"),
    "adapter folder": ("an adapter's folder", "gladstone export gguf {path}"),
    "folder of ggufs": ("a folder", "{path}/tiny-q4_k_m.gguf"),
    "empty folder": ("an empty folder", ""),
    "empty file": ("the file is empty", ""),
    "big-endian": ("big-endian", "little-endian one"),
    "version 1": ("version 1", "newer file"),
    "version 4": ("version 4", "newer llama.cpp"),
    "embedding model": ("an embedding model", "generates text"),
    "embedding decoder": ("an embedding model", "generates text"),
    "reranker": ("a reranker", "generates text"),
    "NUL in a tensor's name": ("control characters", "output_no\\x00rm.weight"),
    "escape in a key": ("control characters", "\\x1b[31m"),
    "NUL in the template": ("a zero byte", "tokenizer.chat_template"),
    "ik_llama.cpp type": ("ik_llama.cpp", "another type"),
    "dropped type": ("Q4_0_4_4, which llama.cpp has dropped", "Q4_0"),
}
SOUND = ("escape in the name", "endless context", "ollama blob")


def test_every_wrong_file_has_its_answer() -> None:
    assert set(SAID) | set(SOUND) == set(WRONG)


@pytest.mark.parametrize("name", SAID)
def test_a_wrong_file_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    path = WRONG[name](tmp_path)
    with pytest.raises(GladstoneError) as caught:
        read_generative_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "Export it again" not in message
    for part in SAID[name]:
        assert part.format(path=path, folder=tmp_path) in message


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_is_a_model_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    assert read_generative_model(WRONG[name](tmp_path))[0].metadata["general.architecture"] == "llama"


def test_a_file_that_was_exported_here_is_to_be_exported_again(tmp_path: Path) -> None:
    path = written("tiny.gguf", tiny_bpe())(tmp_path)
    assert how_to_replace(path) == "Download or copy it again."
    write_manifest(tmp_path, Manifest("export", (record_file(tmp_path, path),), {}, {}, {}))
    assert how_to_replace(path) == "Export it again."
    assert how_to_replace(path.with_name("other.gguf")) == "Download or copy it again."


def test_pieces_of_a_split_are_one_model(tmp_path: Path) -> None:
    first, *_ = split(tmp_path)
    assert len(read_model(first)) == 3
    assert read_info(first).parameters == read_info(written("tiny.gguf", tiny_bpe())(tmp_path)).parameters


def test_raw_parts_joined_with_the_given_command_are_the_model_again(tmp_path: Path) -> None:
    first, second = raw_parts(tmp_path)
    told = describe_raw_part(second)
    assert told is not None
    words = shlex.split(told.partition("Join them: ")[2])
    assert words == ["cat", str(first), str(second), ">", str(tmp_path / "tiny.gguf")]
    (tmp_path / "tiny.gguf").write_bytes(first.read_bytes() + second.read_bytes())
    assert read_info(tmp_path / "tiny.gguf").parameters > 0


@pytest.mark.parametrize(
    ("names", "given", "says"),
    [
        (("m.gguf.part1of3", "m.gguf.part3of3"), 0, "part 2 is missing"),
        (("m.gguf.part3of3",), 0, "parts 1, 2 are missing"),
        (("m.gguf.001", "m.gguf.002"), 1, "m.gguf.001"),
        (("m.gguf-split-a", "m.gguf-split-b"), 1, "m.gguf-split-a"),
        (("m.gguf.aa", "m.gguf.ab"), 0, "m.gguf.ab"),
        (("m.gguf-part-a",), 0, "the others are missing"),
        (("model.gguf.gz",), 0, None),
        (("model.gguf",), 0, None),
        (("model-00001-of-00002.gguf",), 0, None),
    ],
)
def test_raw_parts_are_known_by_their_names(
    names: tuple[str, ...], given: int, says: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    told = describe_raw_part(tmp_path / names[given])
    assert told is None if says is None else told is not None and says in told


def test_paths_in_what_is_said_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "it's my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        read_generative_model(folder)
    assert shlex.split(str(caught.value).split("`")[1]) == ["gladstone", "export", "gguf", str(folder)]


def test_a_path_is_never_taken_for_an_option() -> None:
    assert command_line("runtime", "chat", Path("-m.gguf"), "--lora", Path("a b")) == (
        "runtime chat ./-m.gguf --lora 'a b'"
    )


def test_a_folder_of_models_names_those_that_can_be_asked(tmp_path: Path) -> None:
    gguf_folder(tmp_path)
    (tmp_path / "tiny-imatrix.gguf").touch()
    with pytest.raises(ArtifactError) as caught:
        read_generative_model(tmp_path)
    assert "imatrix" not in str(caught.value)


def test_a_damaged_archive_is_still_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(torch_zip()[:40])
    with pytest.raises(ArtifactError, match="a zip archive"):
        read_generative_model(path)


def test_a_dangling_link_names_where_it_leads(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.symlink_to(tmp_path / "gone.gguf")
    with pytest.raises(ArtifactError, match=r"a link to .*gone\.gguf, which does not exist"):
        read_generative_model(path)


def test_a_context_is_no_longer_than_can_be_true(tmp_path: Path) -> None:
    info = read_info(WRONG["endless context"](tmp_path))
    assert (info.claimed_tokens, info.context_tokens) == (2**32 - 1, MOST_CONTEXT_TOKENS)
    longest = with_keys(tiny_bpe(), ("llama.context_length", U32, 10_485_760))
    assert read_info(written("longest.gguf", longest)(tmp_path)).context_tokens == 10_485_760


def test_a_context_ends_where_the_learned_positions_do(tmp_path: Path) -> None:
    from tests.faults.tiny_ggufs import CONTEXT_TOKENS, tiny_bert

    file = with_keys(tiny_bert(), ("bert.context_length", U32, 100_000))
    info = read_info(written("bert.gguf", file)(tmp_path))
    assert (info.claimed_tokens, info.context_tokens) == (100_000, CONTEXT_TOKENS)
