"""Reads JSON objects written by other tools."""

import json
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ArtifactError if the file is unreadable or holds anything but one JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: broken, expected a JSON object ({error}).") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: broken: it holds {type(found).__name__}, expected a JSON object.")
    return found
