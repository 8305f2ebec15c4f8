"""Measurements of this machine, kept between runs in small JSON files in the cache folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from gladstone.artifacts import write_json
from gladstone.errors import GladstoneError


def read_findings(store: Path) -> dict[str, Any]:
    """Read the stored measurements by key; empty if the file is missing or damaged."""
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def add_finding(store: Path, key: str, finding: Any) -> None:
    """Store one measurement. If it cannot be written, the next run measures again."""
    with suppress(OSError, GladstoneError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, read_findings(store) | {key: finding})
