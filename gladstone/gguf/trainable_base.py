"""A GGUF given as the model to train: the embedded one is that, of any other its source is named."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gladstone.artifacts import is_listed, read_manifest, sha256_file
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf.header import read_header

HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
SOURCE_KEYS = (
    "general.base_model.0.repo_url", "general.source.repo_url", "general.source.url", "general.repo_url",
    "general.source.huggingface.repository", "general.url",
)  # fmt: skip
WHY = "a GGUF, and training needs the weights before they were quantised"


def names_gguf(name: str, path: Path) -> bool:
    """Whether a base is named by a GGUF's path. A folder is none, whatever it is called."""
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):  # no such file, or a name that can be none
        return name.endswith(".gguf")


def is_copy(path: Path, original: Path) -> bool:
    """Whether two files have the same bytes."""
    try:
        same_size = path.stat().st_size == original.stat().st_size
    except OSError:
        return False
    return same_size and sha256_file(path) == sha256_file(original)


def refusal(option: str, name: str, path: Path) -> ConfigError:
    """Why a GGUF cannot be trained, and what to give instead."""
    if not path.is_file():
        return ConfigError(f"{option}: {name!r}: there is no such file, and a GGUF could not be trained: {WHY}.")
    return ConfigError(f"{option}: {name!r} is {WHY}. {_instead(path)}")


def refusal_of_folder(option: str, name: str, folder: Path) -> ConfigError | None:
    """The same of a folder with nothing but GGUF files; None of any other."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        return None
    return ConfigError(f"{option}: {name!r} holds {files[0].name}, {WHY}. {_instead(files[0])}")


def refusal_of_repository(option: str, name: str) -> ConfigError | None:
    """The same of a Hub id that by its name holds GGUF files; None of any other."""
    if not name.lower().endswith("gguf"):
        return None
    return ConfigError(
        f"{option}: {name!r} holds, by its name, GGUF files, and training needs the weights before they were "
        "quantised. Give the Hub id of the model that they were made of: the repository's page names it."
    )


def _instead(path: Path) -> str:
    run = _run_of(path)
    if run is not None:
        return f"It was exported from a run whose base is {run}: give that instead."
    try:
        metadata = read_header(path, is_model=False).metadata
    except ArtifactError:
        metadata = {}
    source = hub_source(metadata)
    if source is not None:
        return f"It says that it was made of {source}: give that Hub id, or the folder of that model."
    name = metadata.get("general.name")
    called = f" (it calls itself {name[:60]!r})" if isinstance(name, str) and name else ""
    return (
        f"Give the Hub id or the folder of the model that it was made of{called}: config.json, tokenizer and "
        "*.safetensors."
    )


def _run_of(path: Path) -> str | None:
    """The base of what was exported here, by the manifest beside it."""
    if not is_listed(path):
        return None
    base = read_manifest(path.parent).config.get("base")
    return str(base) if isinstance(base, str) else None


def hub_source(metadata: Mapping[str, Any]) -> str | None:
    """The Hub id of the model that a GGUF's metadata says it was made of; not that of another GGUF."""
    for key in SOURCE_KEYS:
        value = metadata.get(key)
        found = HUB.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None and key.endswith("repository") and isinstance(value, str):
            found = re.fullmatch(r"([\w.-]+/[\w.-]+)", value)
        if found is not None and not found[1].lower().endswith("gguf"):
            return found[1]
    return None
