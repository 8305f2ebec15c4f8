"""Names the files of an export after the source's folder."""

import re
from pathlib import Path

LONGEST = 64
STATE_NAME = ".export-state.json"  # in the folder of an unfinished export
# folder names that need their parent's name
BARE = re.compile(r"(checkpoint-\d+|adapter|lora|merged|model|final|outputs?|results?|\.)", re.I)
SNAPSHOT = re.compile(r"[0-9a-f]{40}")  # of the Hub's cache: models--OWNER--NAME/snapshots/HASH


def name_of(folder: Path) -> str:
    """A name of letters, digits, dots, dashes and underscores for a folder.

    >>> name_of(Path("/a/my tune")), name_of(Path("/a/tune/checkpoint-500"))
    ('my-tune', 'tune-checkpoint-500')
    """
    folder = folder.resolve()
    if in_hub_cache(folder):
        return _safe(folder.parent.parent.name.rpartition("--")[2])
    if BARE.fullmatch(folder.name) and _safe(folder.parent.name) != "model":
        return _safe(f"{folder.parent.name}-{folder.name}")
    return _safe(folder.name)


def in_hub_cache(folder: Path) -> bool:
    """True for a snapshot folder in the Hub's cache."""
    return folder.parent.name == "snapshots" and bool(SNAPSHOT.fullmatch(folder.name))


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:LONGEST].rstrip("-._") or "model"
