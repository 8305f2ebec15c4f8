"""What was found sound before: a later start looks only whether the file is still the same one.

An entry is a small file of the cache folder. One that cannot be written or read costs time, never truth: the file is
looked at again.
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

FOLDER_NAME = "sound"
MAX_ENTRIES = 256  # the oldest go
SETTLED_S = 2.0  # the coarsest clock of a file system: what changed since could change again under the same time


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is the same as before, without reading it whole."""

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
        """Of a file as it is; its first `head_bytes` are hashed. Raises OSError."""
        with path.open("rb") as file:
            head = file.read(head_bytes)
            state = os.fstat(file.fileno())
        return cls(
            path.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev,
            head_bytes, hashlib.sha256(head).hexdigest(),
        )  # fmt: skip


def is_remembered(kind: str, path: Path) -> bool:
    """True if this was remembered of the file, and it and its other parts have not changed since."""
    try:
        entries = json.loads(_entry(kind, path).read_text(encoding="utf-8"))
        stamps = [Stamp(**entry) for entry in entries]
        return bool(stamps) and all(Stamp.of(path.with_name(one.name), one.head_bytes) == one for one in stamps)
    except (OSError, ValueError, TypeError):
        return False


def remember(kind: str, path: Path, stamps: list[Stamp]) -> None:
    """Note that a file, whose parts had these stamps before it was looked at, is sound.

    Nothing is noted of files that were changed a moment ago, nor where the cache folder cannot be written to.
    """
    if time.time_ns() - max(max(one.changed_ns, one.modified_ns) for one in stamps) < SETTLED_S * 1e9:
        return
    entry = _entry(kind, path)
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, suffix=".partial", delete=False) as file:
            file.write(json.dumps([asdict(one) for one in stamps]))
        Path(file.name).replace(entry)
        _drop_oldest(entry.parent)


def _entry(kind: str, path: Path) -> Path:
    key = f"{kind}\0{path.resolve()}".encode("utf-8", "surrogateescape")
    return cache_dir() / FOLDER_NAME / f"{hashlib.sha256(key).hexdigest()}.json"


def _drop_oldest(folder: Path) -> None:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
    for entry in entries[:-MAX_ENTRIES]:
        entry.unlink(missing_ok=True)
