"""Measurements of this machine, kept between runs in small JSON files in the cache folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from gladstone.artifacts import write_json
from gladstone.errors import GladstoneError


def read_measurements(store: Path) -> dict[str, Any]:
    """Read the stored measurements by key; empty if the file is missing or damaged."""
    try:
        measurements = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return measurements if isinstance(measurements, dict) else {}


def store_measurement(store: Path, key: str, measurement: Any) -> None:
    """Store one measurement. If it cannot be written, the next run measures again."""
    with suppress(OSError, GladstoneError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, read_measurements(store) | {key: measurement})
