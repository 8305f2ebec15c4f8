"""Files that users give in place of a model, each as small as possible and written like its own tool writes it."""

import dataclasses
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.tiny_ggufs import tiny_bert, tiny_bpe
from tests.gladstone.gguf_files import ARRAY, BOOL, F32, STRING, U16, U32, Array, Gguf, TensorEntry

Maker = Callable[[Path], Path]


def with_keys(file: Gguf, *keys: tuple[str, int, object]) -> Gguf:
    """The file with keys replaced or added."""
    for key, kind, value in keys:
        file.set(key, kind, value)
    return file


def renamed(architecture: str) -> Gguf:
    """A sound Llama that calls itself another architecture."""
    file = tiny_bpe()
    keys = [(key.replace("llama.", f"{architecture}."), kind, value) for key, kind, value in file.keys]
    return with_keys(dataclasses.replace(file, keys=keys), ("general.architecture", STRING, architecture))


def tensors_only(keys: list[tuple[str, int, object]], *names: tuple[str, tuple[int, ...]]) -> Gguf:
    """A GGUF with few keys and F32 tensors of zeros (first ones) that are no model's."""
    entries, size = [], 0
    for name, shape in names:
        entries.append(TensorEntry(name, shape, 0, size))
        count = 4
        for each in shape:
            count *= each
        size += -(-count // 32) * 32
    return Gguf(keys=list(keys), tensors=entries, data=bytes(size))


def imatrix() -> Gguf:
    """As llama-imatrix and `gladstone export gguf --imatrix train` write it."""
    keys = [
        ("general.architecture", STRING, "imatrix"),
        ("general.type", STRING, "imatrix"),
        ("imatrix.datasets", ARRAY, Array(STRING, ["train.jsonl"])),
        ("imatrix.chunk_count", U32, 3),
        ("imatrix.chunk_size", U32, 512),
    ]
    name = "blk.0.ffn_up.weight"
    return tensors_only(keys, (f"{name}.in_sum2", (64, 1)), (f"{name}.counts", (1, 1)))


def old_imatrix(names: tuple[str, ...] = ("blk.0.ffn_up.weight",), columns: int = 64) -> bytes:
    """llama-imatrix's binary form (imatrix.dat), as it was before the GGUF one."""
    data = struct.pack("<i", len(names))
    for name in names:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, columns)
        data += struct.pack(f"<{columns}f", *[2.0] * columns)
    dataset = b"wiki.train.raw"
    return data + struct.pack("<ii", 2, len(dataset)) + dataset


def adapter() -> Gguf:
    """As convert_lora_to_gguf writes it."""
    keys = [
        ("general.architecture", STRING, "llama"),
        ("general.type", STRING, "adapter"),
        ("adapter.type", STRING, "lora"),
        ("adapter.lora.alpha", F32, 16.0),
    ]
    name = "blk.0.attn_q.weight"
    return tensors_only(keys, (f"{name}.lora_a", (64, 4)), (f"{name}.lora_b", (4, 64)))


def control_vector() -> Gguf:
    """As llama-cvector-generator writes it."""
    keys = [
        ("general.architecture", STRING, "controlvector"),
        ("controlvector.model_hint", STRING, "llama"),
        ("controlvector.layer_count", U32, 1),
    ]
    return tensors_only(keys, ("direction.1", (64,)))


def mmproj() -> Gguf:
    """As convert_hf_to_gguf --mmproj writes it."""
    keys = [
        ("general.architecture", STRING, "clip"),
        ("general.type", STRING, "mmproj"),
        ("clip.has_vision_encoder", BOOL, 1),
        ("clip.projector_type", STRING, "mlp"),
    ]
    return tensors_only(keys, ("v.patch_embd.weight", (16, 16, 3, 4)))


def vocabulary_only() -> Gguf:
    """As convert_hf_to_gguf --vocab-only writes it."""
    return dataclasses.replace(tiny_bpe(), tensors=[], data=b"")


def split(folder: Path, count: int = 3) -> list[Path]:
    """A model in pieces as llama-gguf-split names and marks them."""
    whole = tiny_bpe()
    share = -(-len(whole.tensors) // count)
    paths = []
    for number in range(count):
        mine = whole.tensors[number * share : (number + 1) * share]
        begin = mine[0].offset
        after = (number + 1) * share
        end = whole.tensors[after].offset if after < len(whole.tensors) else len(whole.data)
        piece = Gguf(
            keys=list(whole.keys) if number == 0 else [],
            tensors=[dataclasses.replace(each, offset=each.offset - begin) for each in mine],
            data=whole.data[begin:end],
        )
        piece.set("split.no", U16, number)
        piece.set("split.count", U16, count)
        piece.set("split.tensors.count", 5, len(whole.tensors))
        path = folder / f"tiny-{number + 1:05}-of-{count:05}.gguf"
        path.write_bytes(piece.content())
        paths.append(path)
    return paths


def raw_parts(folder: Path, count: int = 2) -> list[Path]:
    """A model cut anywhere, as `split -b` and the Hub's uploaders of old did."""
    content = tiny_bpe().content()
    size = -(-len(content) // count)
    paths = [folder / f"tiny.gguf.part{number + 1}of{count}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(content[number * size : (number + 1) * size])
    return paths


def safetensors(names: tuple[str, ...] = ("model.embed_tokens.weight",)) -> bytes:
    """As the package of that name writes it."""
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(names)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * len(names))


def torch_zip() -> bytes:
    """As torch.save writes it since 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("pytorch_model/version", b"3\n")
    return buffer.getvalue()


def plain_zip() -> bytes:
    """A zip with a GGUF in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.gguf", b"GGUF")
    return buffer.getvalue()


def tar() -> bytes:
    """A tar with a GGUF in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4683071552\n"


def ollama_manifest(folder: Path) -> Path:
    """Ollama's folder of models, and the manifest of one in it."""
    blob = folder / "blobs" / ("sha256-" + "ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(tiny_bpe().content())
    path = folder / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    path.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "ab" * 32, "size": 1}
    path.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    return path


def big_endian() -> bytes:
    """As convert_hf_to_gguf --bigendian begins."""
    return b"GGUF" + struct.pack(">IQQ", 3, 2, 4) + bytes(64)


def hf_folder(folder: Path) -> Path:
    """A model as the Hub holds it."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def peft_folder(folder: Path) -> Path:
    """An adapter as PEFT saves it."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(("base_model.model.q_proj.lora_A.weight",)))
    return folder


def gguf_folder(folder: Path) -> Path:
    """A folder with two models in it."""
    for name in ("tiny-q4_k_m.gguf", "tiny-q8_0.gguf"):
        (folder / name).write_bytes(tiny_bpe().content())
    return folder


def pooled() -> Gguf:
    """A decoder that was trained to make vectors, as Qwen3-Embedding."""
    return with_keys(tiny_bpe(), ("llama.pooling_type", U32, 3))


def reranker() -> Gguf:
    """A BERT with a head that gives a score."""
    return with_keys(tiny_bert(), ("bert.pooling_type", U32, 4))


def endless_context() -> Gguf:
    """A model that claims to have been trained on more tokens than anyone has written."""
    return with_keys(tiny_bpe(), ("llama.context_length", U32, 2**32 - 1))


def written(name: str, content: bytes | Gguf) -> Maker:
    """A maker of one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.content() if isinstance(content, Gguf) else content)
        return path

    return make


def _last_split(folder: Path) -> Path:
    return split(folder)[2]


def _split_without_second(folder: Path) -> Path:
    first, second, _ = split(folder)
    second.unlink()
    return first


def _joined_splits(folder: Path) -> Path:
    parts = split(folder)
    path = folder / "tiny.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def _renamed_first_split(folder: Path) -> Path:
    first = split(folder)[0]
    return first.rename(folder / "model.gguf")


def _cut(folder: Path) -> Path:
    return written("tiny.gguf", tiny_bpe().content()[:-1000])(folder)


def _first_raw_part(folder: Path) -> Path:
    return raw_parts(folder)[0]


def _second_raw_part(folder: Path) -> Path:
    return raw_parts(folder)[1]


def _blob(folder: Path) -> Path:
    ollama_manifest(folder)
    return folder / "blobs" / ("sha256-" + "ab" * 32)


def _nul_in_tensor() -> Gguf:
    file = tiny_bpe()
    entries = [dataclasses.replace(each, name=each.name.replace("norm", "no\0rm")) for each in file.tensors]
    return dataclasses.replace(file, tensors=entries)


WRONG: dict[str, Maker] = {
    "imatrix": written("tiny-imatrix.gguf", imatrix()),
    "old imatrix": written("imatrix.dat", old_imatrix()),
    "adapter": written("tiny-lora.gguf", adapter()),
    "control vector": written("happy.gguf", control_vector()),
    "mmproj": written("mmproj-tiny.gguf", mmproj()),
    "last piece of a split": _last_split,
    "split with a piece missing": _split_without_second,
    "first piece under another name": _renamed_first_split,
    "pieces joined by cat": _joined_splits,
    "first raw part": _first_raw_part,
    "second raw part": _second_raw_part,
    "download cut short": _cut,
    "download of zeros": written("tiny.gguf", bytes(4096)),
    "vocabulary only": written("ggml-vocab-tiny.gguf", vocabulary_only()),
    "unknown architecture": written("tiny.gguf", renamed("qwen9")),
    "image model": written("flux1-dev-Q4_0.gguf", tensors_only([("general.architecture", STRING, "flux")], ("img_in.weight", (64, 64)))),
    "text diffusion model": written("dream.gguf", renamed("dream")),
    "speech model": written("ggml-base.bin", b"lmgg" + bytes(64)),
    "old ggml": written("llama-7b.ggmlv3.q4_0.bin", b"tjgg" + struct.pack("<I", 3) + bytes(64)),
    "old lora": written("ggml-adapter-model.bin", b"algg" + struct.pack("<I", 1) + bytes(64)),
    "safetensors": written("model.safetensors", safetensors()),
    "safetensors adapter": written("adapter_model.safetensors", safetensors(("base_model.model.q_proj.lora_A.weight",))),
    "pytorch": written("pytorch_model.bin", torch_zip()),
    "old pytorch": written("model.ckpt", pickle.dumps([1], protocol=2)),
    "onnx": written("model.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:" + bytes(64)),
    "zip": written("model.gguf", plain_zip()),
    "tar": written("model.tar", tar()),
    "gzip": written("model.gguf.gz", gzip.compress(b"GGUF", mtime=0)),
    "html page": written("model.gguf", b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"),
    "git-lfs pointer": written("model.gguf", LFS),
    "error of a server": written("model.gguf", b"Invalid username or password."),
    "ollama manifest": ollama_manifest,
    "modelfile": written("Modelfile", b"FROM ./tiny.gguf\nTEMPLATE x\n"),
    "config": written("config.json", b'{"model_type": "llama"}'),
    "model folder": hf_folder,
    "adapter folder": peft_folder,
    "folder of ggufs": gguf_folder,
    "empty folder": lambda folder: folder,
    "empty file": written("tiny.gguf", b""),
    "big-endian": written("tiny.gguf", big_endian()),
    "version 1": written("tiny.gguf", dataclasses.replace(tiny_bpe(), version=1)),
    "version 4": written("tiny.gguf", dataclasses.replace(tiny_bpe(), version=4)),
    "embedding model": written("bge.gguf", tiny_bert()),
    "embedding decoder": written("qwen3-embedding.gguf", pooled()),
    "reranker": written("bge-reranker.gguf", reranker()),
    "NUL in a tensor's name": written("tiny.gguf", _nul_in_tensor()),
    "escape in the name": written("tiny.gguf", with_keys(tiny_bpe(), ("general.name", STRING, "a\x1b[31mb"))),
    "escape in a key": written("tiny.gguf", with_keys(tiny_bpe(), ("general.\x1b[31mx", U32, 3))),
    "NUL in the template": written("tiny.gguf", with_keys(tiny_bpe(), ("tokenizer.chat_template", STRING, "a\0b"))),
    "ik_llama.cpp type": written("tiny.gguf", dataclasses.replace(Gguf(), tensors=[TensorEntry(kind=137)])),
    "dropped type": written("tiny.gguf", dataclasses.replace(Gguf(), tensors=[TensorEntry(kind=31)])),
    "endless context": written("tiny.gguf", endless_context()),
    "ollama blob": _blob,
}  # fmt: skip
