"""Atomic file writes, and the manifest that marks a folder as finished.

A stage writes each file under a temporary name, renames it when it is complete, and writes `manifest.json` last. So a
folder is finished exactly if it has a manifest, and no reader ever sees a partial file.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError
from gladstone.strict_json import json_text, name_of

MANIFEST_NAME = "manifest.json"
PROOF_NAME = "proof.json"  # beside an exported model: its checks against the trained one
MANIFEST_SCHEMA = 1

_FIELD_TYPES: dict[str, Any] = {
    "path": str, "sha256": str, "size_bytes": int,
    "stage": str, "parents": dict, "config": dict, "versions": dict, "facts": dict,
    "template_sha256": str | None, "seed": int | None,
}  # fmt: skip


@dataclass(frozen=True)
class FileRecord:
    """A file in a folder: its path relative to the folder, its hash and its size."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a stage produced, from which inputs, with which settings and versions. Written last."""

    stage: str
    files: tuple[FileRecord, ...]
    parents: dict[str, str]
    config: dict[str, Any]
    versions: dict[str, str]
    template_sha256: str | None = None
    seed: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self, path: str) -> FileRecord:
        """Return the record of one file. Raises ArtifactError if the manifest does not list it."""
        for record in self.files:
            if record.path == path:
                return record
        raise ArtifactError(f"the manifest of this {self.stage} folder does not list {path!r}.")


def sha256_file(path: Path) -> str:
    """Hash a file. Raises ArtifactError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None


def sha256_path(path: Path) -> str:
    """Hash a file, or the names and contents of a folder's files. Raises ArtifactError if one cannot be read."""
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def record_file(folder: Path, path: Path) -> FileRecord:
    """Make the record of a file inside `folder`. Raises ArtifactError if it cannot be read."""
    return FileRecord(path.relative_to(folder).as_posix(), sha256_file(path), path.stat().st_size)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; fsync and rename it on success, remove it on any failure.

    Raises ArtifactError if the file system is full or refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises ArtifactError if it cannot be written."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically. Raises ArtifactError if it cannot be written."""
    with atomic_file(path) as partial:
        shutil.copyfile(source, partial)


def write_json(path: Path, value: Any, non_finite: Callable[[float], Any] = name_of) -> None:
    """Write an indented JSON file atomically; `non_finite` is that of `json_text`.

    Raises ArtifactError if it cannot be written.
    """
    write_text(path, json_text(value, indent=2, non_finite=non_finite) + "\n")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON Lines file atomically, row by row. Raises ArtifactError if it cannot be written."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json_text(row) + "\n")


def remove_partials(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in this folder."""
    for leftover in folder.glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Mark the folder as finished; call it last. Raises ArtifactError if it cannot be written."""
    write_json(folder / MANIFEST_NAME, {"schema": MANIFEST_SCHEMA} | dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished folder. Raises ArtifactError if it is missing or invalid."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != MANIFEST_SCHEMA:
            raise ArtifactError(f"{path}: written by another version of Gladstone (schema {MANIFEST_SCHEMA} expected).")
        files = tuple(FileRecord(**_check_types(record)) for record in data.pop("files"))
        return Manifest(files=files, **_check_types(data))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: not finished (no {MANIFEST_NAME}). Run the command that makes it again."
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a manifest ({error}).") from None


def _check_types(fields: dict[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():
        if not isinstance(value, _FIELD_TYPES.get(name, object)):
            raise TypeError(f"{name} is {type(value).__name__}")
    return fields


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its record. Raises ArtifactError with the first one that differs."""
    for record in manifest.files:
        check_file(folder / record.path, record)


def check_file(path: Path, record: FileRecord) -> None:
    """Raise ArtifactError if the file is missing or differs from its record."""
    if not path.is_file():
        raise ArtifactError(f"{path}: listed in the manifest but missing.")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise ArtifactError(f"{path}: {size:,} bytes, the manifest says {record.size_bytes:,}: cut short or changed.")
    if sha256_file(path) != record.sha256:
        raise ArtifactError(
            f"{path}: its bytes differ from the manifest's sha256: damaged or changed since it was made."
        )


def is_finished(folder: Path) -> bool:
    """True if the folder holds a manifest."""
    return (folder / MANIFEST_NAME).is_file()


def is_in_manifest(path: Path) -> bool:
    """True if a manifest beside the file lists it, so a stage wrote it here."""
    try:
        return path.name in {record.path for record in read_manifest(path.parent).files}
    except ArtifactError:
        return False


def check_writable(folder: Path) -> None:
    """Create the folder and write a test byte in it. Raises ArtifactError if that fails."""
    check_no_file_in_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written to: {error.strerror or error}.") from None
    check_room_for(folder)


def check_room_for(folder: Path) -> None:
    """Write a test byte where the folder is or would be, and leave nothing. Raises ArtifactError if that fails."""
    check_no_file_in_place(folder)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written to: {error.strerror or error}.") from None


def check_no_file_in_place(folder: Path) -> None:
    """Raise ArtifactError if a file or a dangling link is in the place of the folder or a parent."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ArtifactError(
                f"{folder}: cannot be written to: {path} is a link to {path.readlink()}, which does not exist."
            )
        if path.is_file():
            raise ArtifactError(f"{folder}: cannot be written to: {path} is a file, expected a folder.")


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to the disk. Raises OSError if that fails."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
