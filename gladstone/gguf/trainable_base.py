"""A GGUF given as the base model to train: only the embedded one works; for any other the error names its source."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gladstone import file_names
from gladstone.artifacts import is_in_manifest, read_manifest, sha256_file
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf.header import read_header
from gladstone.gguf.types import MAGIC

HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
SOURCE_KEYS = (
    "general.base_model.0.repo_url", "general.source.repo_url", "general.source.url", "general.repo_url",
    "general.source.huggingface.repository", "general.url",
)  # fmt: skip
WHY = "a GGUF, and training needs the weights before they were quantised"


def is_gguf_path(name: str, path: Path) -> bool:
    """Whether the name of a base is the path of a GGUF file. A folder never is, whatever its name."""
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # no such file, or a name that no file can have
        return name.endswith(".gguf")


def has_same_bytes(path: Path, original: Path) -> bool:
    """Whether two files have the same bytes."""
    try:
        same_size = path.stat().st_size == original.stat().st_size
    except OSError:
        return False
    return same_size and sha256_file(path) == sha256_file(original)


def gguf_base_error(option: str, name: str, path: Path) -> ConfigError:
    """Return the error that says why a GGUF cannot be trained and what to give instead."""
    if not path.is_file():
        return ConfigError(f"{option}: {name!r}: no such file, and it could not be trained either: it is {WHY}.")
    return ConfigError(f"{option}: {name!r} is {WHY}. {_instead(path)}")


def gguf_folder_error(option: str, name: str, folder: Path) -> ConfigError | None:
    """Return the same error for a folder whose only weights are GGUF files; None for any other folder."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob(file_names.WEIGHTS_PATTERN)):
        return None
    return ConfigError(f"{option}: {name!r} holds {files[0].name}, {WHY}. {_instead(files[0])}")


def gguf_repository_error(option: str, name: str) -> ConfigError | None:
    """Return the same error for a Hub id whose name ends in GGUF; None for any other."""
    if not name.lower().endswith("gguf"):
        return None
    return ConfigError(
        f"{option}: by its name, {name!r} holds GGUF files, and training needs the weights before they were "
        "quantised. Give the Hub id of the original model: the repository's page names it."
    )


def _instead(path: Path) -> str:
    run = _exported_base(path)
    if run is not None:
        return f"It was exported from a run whose base is {run}: give that instead."
    try:
        metadata = read_header(path, is_model=False).metadata
    except ArtifactError:
        metadata = {}
    source = source_hub_id(metadata)
    if source is not None:
        return f"Its metadata says that it was made from {source}: give that Hub id, or the folder of that model."
    name = metadata.get("general.name")
    called = f" (it calls itself {name[:60]!r})" if isinstance(name, str) and name else ""
    return (
        f"Give the Hub id or the folder of the model that it was made from{called}: config.json, tokenizer and "
        "*.safetensors."
    )


def _exported_base(path: Path) -> str | None:
    """The base model of a file exported by Gladstone, from the manifest beside it."""
    if not is_in_manifest(path):
        return None
    base = read_manifest(path.parent).config.get("base")
    return str(base) if isinstance(base, str) else None


def source_hub_id(metadata: Mapping[str, Any]) -> str | None:
    """The Hub id of the original model in a GGUF's metadata; None if it names none, or only another GGUF."""
    for key in SOURCE_KEYS:
        value = metadata.get(key)
        match = HUB.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None and key.endswith("repository") and isinstance(value, str):
            match = re.fullmatch(r"([\w.-]+/[\w.-]+)", value)
        if match is not None and not match[1].lower().endswith("gguf"):
            return match[1]
    return None
