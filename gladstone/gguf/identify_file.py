"""Identify a file or folder that was given in place of a GGUF model, by its first bytes and its name.

Each result ends a message that begins "expected a GGUF model, this is": what the file is and what to do with it.
"""

import json
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone import file_names, run_folder
from gladstone.commands.shell import command_line
from gladstone.gguf.parts import describe_raw_part
from gladstone.signatures import FileKind, recognise

HEAD_BYTES = 4096
EXPORT = "`gladstone export gguf` converts a model's or an adapter's folder to GGUF"
NOT_RUN = "Gladstone runs GGUF files"
OLD = "current versions of llama.cpp do not read it: look for the model as a GGUF, or export its folder"
SHOWN_FILES = 5

# what can be done with a file; other kinds are NOT_RUN
ADVICE = {
    **dict.fromkeys(
        (FileKind.ZIP, FileKind.GZIP, FileKind.BZIP2, FileKind.XZ, FileKind.SEVEN_ZIP, FileKind.RAR, FileKind.ZSTD),
        "Unpack it",
    ),
    FileKind.PICKLE: f"as torch.save writes weights. {EXPORT}",
    **dict.fromkeys((FileKind.GGML, FileKind.GGMF, FileKind.GGJT), OLD),
    FileKind.GGLA: "export the adapter's own folder: `gladstone export lora`",
    FileKind.LLAMAFILE: "Run it by itself, or unpack the .gguf in it",
}


@dataclass(frozen=True)
class FileSample:
    """A file's path, first bytes and size."""

    path: Path
    head: bytes
    size_bytes: int

    @property
    def text(self) -> str | None:
        """The beginning of the file, if it is text."""
        return self.head.decode("utf-8", "ignore") if looks_like_text(self.head) else None


def identify_file(path: Path, head: bytes, size_bytes: int) -> str:
    """Say what a file without the GGUF magic is, and what to do with it."""
    sample = FileSample(path, head[:HEAD_BYTES], size_bytes)
    description = next((text for text in (describe(sample) for describe in RECOGNISERS) if text), None)
    return description or "not one (its first bytes are not 'GGUF')"


def looks_like_text(head: bytes) -> bool:
    """Whether the bytes are printable UTF-8; the last character may be cut off."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _zip(sample: FileSample) -> str | None:
    """torch.save writes a zip with `…/data.pkl`; others may hold a GGUF."""
    if recognise(sample.head) is not FileKind.ZIP:
        return None
    try:
        with zipfile.ZipFile(sample.path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # MAGICS names it
    if any(name.endswith("data.pkl") for name in names):
        return f"a PyTorch file (.bin, .pt, .ckpt). {EXPORT}"
    inside = next((name for name in names if name.endswith(".gguf")), None)
    return f"a zip archive with {Path(inside).name} in it. Unpack it" if inside else None


def _tar(sample: FileSample) -> str | None:
    return "a tar archive. Unpack it" if sample.head[257:262] == b"ustar" else None


def _safetensors(sample: FileSample) -> str | None:
    length = int.from_bytes(sample.head[:8], "little")
    if len(sample.head) < 10 or sample.head[8:9] != b"{" or not 2 <= length <= max(sample.size_bytes, 1 << 27):
        return None
    if b"lora_" in sample.head or sample.path.name.startswith("adapter"):
        folder = command_line("gladstone", "export", "lora", sample.path.parent)
        return f"a PEFT adapter in safetensors. `{folder}` converts it to GGUF, `export gguf` merges it into a model"
    folder = command_line("gladstone", "export", "gguf", sample.path.parent)
    return f"weights in safetensors. `{folder}` converts their folder to GGUF"


def _magic(sample: FileSample) -> str | None:
    kind = recognise(sample.head)
    if kind is not None:
        advice = ADVICE.get(kind, NOT_RUN)
        return f"{kind}{': ' if advice[0].islower() else '. '}{advice}"
    if sample.head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model. {NOT_RUN}"
    return None


def _onnx(sample: FileSample) -> str | None:
    """ONNX is a protocol buffer: ir_version first, then usually the name of the producing tool."""
    head = sample.head
    begins = len(head) > 3 and head[0] == 0x08 and head[1] < 32 and head[2] in (0x12, 0x3A)
    if sample.path.suffix.lower() == ".onnx" or (begins and re.search(rb"pytorch|onnx|tf2onnx|skl2onnx", head[:64])):
        return f"an ONNX model. {NOT_RUN}; {EXPORT[0].lower()}{EXPORT[1:]}"
    return None


def _old_imatrix(sample: FileSample) -> str | None:
    if not is_old_imatrix(sample.head):
        return None
    return f"an importance matrix in llama.cpp's older format. {use_of_imatrix(sample.path)}"


def is_old_imatrix(head: bytes) -> bool:
    """Whether a file begins like llama-imatrix's old binary format: a count, then the name of a weight."""
    if len(head) < 16:
        return False
    count, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + max(length, 0)]
    return 0 < count < 1 << 16 and 4 < length < 256 and len(name) == length and b"weight" in name and name.isascii()


def use_of_imatrix(path: Path) -> str:
    """A sentence with the command that uses an importance matrix."""
    return f"It is for quantising: `gladstone export gguf RUN --quant iq4_xs {command_line('--imatrix', path)}`"


def _zeros(sample: FileSample) -> str | None:
    if sample.head.strip(b"\0"):
        return None
    return "a file that begins with nothing but zeros, like an incomplete download. Download it again"


def _raw_part(sample: FileSample) -> str | None:
    return describe_raw_part(sample.path)


def _failed_download(sample: FileSample) -> str | None:
    """Files that a failed download leaves in a model's place."""
    text = sample.text
    if text is None:
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        size = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" for a file of {int(size[1]):,} bytes" if size else ""
        return f"a git-LFS pointer{of}, not the file itself. Run `git lfs pull`, or download the file"
    if re.match(r"\s*<(?:!doctype html|html|head|\?xml)", text, re.IGNORECASE):
        return "a web page. The server sent an error or a login page instead of the file: download it again"
    return None


def _json(sample: FileSample) -> str | None:
    if sample.text is None or not sample.text.lstrip().startswith("{"):
        return None
    try:
        data = json.loads(sample.path.read_text(encoding="utf-8")) if sample.size_bytes < 1 << 20 else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    if isinstance(data.get("layers"), list) and "schemaVersion" in data:
        return f"an Ollama manifest. {_ollama_blob(sample.path, data)}"
    if "peft_type" in data or "model_type" in data:
        return f"the configuration of {'an adapter' if 'peft_type' in data else 'a model'}. {EXPORT}"
    return "a JSON file"


def _ollama_blob(path: Path, manifest: dict[str, Any]) -> str:
    """A sentence that says where Ollama keeps the model that its manifest names."""
    models = (
        layer.get("digest") for layer in manifest["layers"]
        if isinstance(layer, dict) and str(layer.get("mediaType", "")).endswith("image.model")
    )  # fmt: skip
    digest = next((digest for digest in models if isinstance(digest, str)), None)
    if digest is None:
        return "It names no model"
    blob = digest.replace(":", "-", 1)
    folder = next((parent / "blobs" for parent in path.absolute().parents if (parent / "blobs" / blob).is_file()), None)
    return f"The model is {command_line(folder / blob)}" if folder else f"The model is {blob} in its folder `blobs`"


def _modelfile(sample: FileSample) -> str | None:
    match = re.search(r"^FROM +(\S.*?)\s*$", sample.text or "", re.MULTILINE | re.IGNORECASE)
    return f"an Ollama Modelfile. Give the model that it names: {match[1]}" if match else None


def _text(sample: FileSample) -> str | None:
    if sample.text is None:
        return None
    line = sample.text.strip().splitlines()[0] if sample.text.strip() else ""
    return f"a text file. It begins: {line[:60]!r}" if len(line) > 1 else "a text file"


RECOGNISERS: tuple[Callable[[FileSample], str | None], ...] = (
    _zeros, _safetensors, _zip, _tar, _magic, _onnx, _old_imatrix, _failed_download, _json, _modelfile, _raw_part,
    _text,
)  # fmt: skip


def identify_folder(folder: Path) -> str:
    """Say what a folder given in a model's place is, and what to give instead."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"a folder that cannot be read: {error.strerror}"
    files = [name for name in names if name.endswith(".gguf")]
    models = [name for name in files if not re.search(r"imatrix|mmproj|lora", name)] or files
    first = [name for name in models if not re.search(r"-\d{5}-of-\d{5}\.gguf$", name) or "-00001-of-" in name]
    if first:
        more = f" and {len(first) - SHOWN_FILES} more" if len(first) > SHOWN_FILES else ""
        listing = ", ".join(command_line(folder / name) for name in first[:SHOWN_FILES])
        return f"a folder. Give a file in it: {listing}{more}"
    if file_names.ADAPTER_CONFIG in names or run_folder.ADAPTER in names:
        return f"an adapter's folder. `{command_line('gladstone', 'export', 'gguf', folder)}` converts it to GGUF"
    if file_names.CONFIG in names:
        return f"a model's folder. `{command_line('gladstone', 'export', 'gguf', folder)}` converts it to GGUF"
    return "a folder without a model" if names else "an empty folder"
