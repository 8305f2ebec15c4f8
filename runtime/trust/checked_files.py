"""Files that passed a check: while such a file does not change, it is not checked again.

Each entry is a small file in the cache folder. If an entry cannot be written or read, the model is checked again.
"""

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from gladstone.machine.host import cache_dir
from gladstone.strict_json import json_text

FOLDER_NAME = "sound"
MAX_ENTRIES = 256  # the oldest are deleted
SETTLED_S = 2.0  # the coarsest file system clock: a file that is younger may change again under the same time


@dataclass(frozen=True)
class Stamp:
    """What identifies the state of a file without reading it whole."""

    name: str
    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int
    head_bytes: int
    head_sha256: str

    @classmethod
    def of(cls, path: Path, head_bytes: int) -> Self:
        """The stamp of a file; its first `head_bytes` are hashed. Raises OSError."""
        with path.open("rb") as file:
            head = file.read(head_bytes)
            state = os.fstat(file.fileno())
        return cls(
            path.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev,
            head_bytes, hashlib.sha256(head).hexdigest(),
        )  # fmt: skip


def is_checked(kind: str, path: Path) -> bool:
    """Whether the file passed this kind of check, and neither it nor its other parts have changed since."""
    try:
        entries = json.loads(_entry(kind, path).read_text(encoding="utf-8"))
        stamps = [Stamp(**entry) for entry in entries]
        return bool(stamps) and all(Stamp.of(path.with_name(one.name), one.head_bytes) == one for one in stamps)
    except (OSError, ValueError, TypeError):
        return False


def mark_checked(kind: str, path: Path, stamps: list[Stamp]) -> None:
    """Record that a file passed a check; `stamps` of its parts were taken before the check.

    Files that changed in the last 2 s are not recorded, nor any if the cache folder cannot be written.
    """
    if time.time_ns() - max(max(one.changed_ns, one.modified_ns) for one in stamps) < SETTLED_S * 1e9:
        return
    entry = _entry(kind, path)
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, suffix=".partial", delete=False) as file:
            file.write(json_text([asdict(one) for one in stamps]))
        Path(file.name).replace(entry)
        _drop_oldest(entry.parent)


def _entry(kind: str, path: Path) -> Path:
    key = f"{kind}\0{path.resolve()}".encode("utf-8", "surrogateescape")
    return cache_dir() / FOLDER_NAME / f"{hashlib.sha256(key).hexdigest()}.json"


def _drop_oldest(folder: Path) -> None:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
    for entry in entries[:-MAX_ENTRIES]:
        entry.unlink(missing_ok=True)
