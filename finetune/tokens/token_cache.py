"""A disk cache of tokenised sets, so that a second run on the same rows does not tokenise them again.

The file name is the hash of everything that determines the tokens: rows, template, tokenizer, limits and the versions
of the code involved. So a stale entry is never found.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from finetune.tokens.examples import Example, PairExample, TokenizedExample, TokenizedSet
from gladstone.artifacts import atomic_file
from gladstone.errors import ArtifactError
from gladstone.machine.host import cache_dir
from gladstone.strict_json import json_text

LAYOUT = 3  # increased when the same rows get other labels, or when the arrays in the file change
KEPT_FILES = 24
COUNTS = ("too_long", "cut", "reasoning_cut", "unscored")


def cached(parts: Mapping[str, Any], make: Callable[[], TokenizedSet]) -> tuple[TokenizedSet, bool]:
    """Return the set that `parts` identify, computed by `make` unless cached, and whether it was cached."""
    path = _path(parts)
    stored = _read(path)
    if stored is not None:
        path.touch()
        return stored, True
    tokenized = make()
    try:
        _write(tokenized, path)
        _remove_oldest(path.parent)
    except ArtifactError:  # a full or read-only cache must not fail the run
        pass
    return tokenized, False


def _path(parts: Mapping[str, Any]) -> Path:
    text = json_text({"layout": LAYOUT, **parts}, sort_keys=True, default=str, ensure_ascii=True)
    return cache_dir() / "tokenized" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _write(tokenized: TokenizedSet, path: Path) -> None:
    arrays = {
        "counts": np.array([getattr(tokenized, name) for name in COUNTS], dtype=np.int64),
        "pairs": np.array(isinstance(tokenized.examples[0], PairExample)),
        "rows": np.array(tokenized.rows, dtype=np.int64),
    }
    for name in ("input_ids", "labels"):
        values = [getattr(example, name) for example in tokenized.examples]
        arrays[name] = np.array([token for value in values for token in value], dtype=np.int32)
        arrays[f"{name}_ends"] = np.cumsum([len(value) for value in values], dtype=np.int64)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> TokenizedSet | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            kind = PairExample if arrays["pairs"] else TokenizedExample
            columns = [np.split(arrays[name], arrays[f"{name}_ends"][:-1]) for name in ("input_ids", "labels")]
            rows = tuple(arrays["rows"].tolist())
            counts = dict(zip(COUNTS, arrays["counts"].tolist(), strict=True))
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):  # missing or damaged: computed again
        return None
    examples: tuple[Example, ...] = tuple(
        kind(tuple(ids.tolist()), tuple(labels.tolist())) for ids, labels in zip(*columns, strict=True)
    )
    return TokenizedSet(examples, rows, **counts)


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT_FILES]:
        path.unlink(missing_ok=True)
