"""The finished artifacts of an export, recorded in a state file so that an interrupted export resumes."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.original.names import STATE_NAME
from gladstone.artifacts import (
    MANIFEST_NAME,
    FileRecord,
    check_file,
    is_finished,
    read_manifest,
    record_file,
    write_json,
)
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError


@dataclass(frozen=True)
class Artifact:
    """Files that were made together, the hash of what they were made from, and facts for manifest and notes."""

    made_from: str
    files: tuple[FileRecord, ...]
    facts: dict[str, Any] = field(default_factory=dict)


Made = tuple[Iterable[Path], dict[str, Any]]


class ArtifactCache:
    """Makes each artifact of an export once, in one folder."""

    def __init__(self, out: Path, key: str, progress: Progress) -> None:
        """`key` identifies the model. Raises ArtifactError if the folder holds the export of another model."""
        self.out, self.key, self.progress = out, key, progress
        self.artifacts = self._earlier()
        self.used: list[str] = []

    def artifact(self, name: str, made_from: Iterable[object], make: Callable[[], Made]) -> Artifact:
        """The artifact of this name: the recorded one if it was made from the same, else the one that `make` makes."""
        digest = hashlib.sha256("\0".join(map(str, made_from)).encode("utf-8", "surrogatepass")).hexdigest()
        known = self.artifacts.get(name)
        if known is None or known.made_from != digest or not self._is_there(known):
            self._open()
            files, facts = make()
            made = Artifact(digest, tuple(record_file(self.out, path) for path in files), facts)
            self._remove(set(known.files if known else ()) - {*made.files})
            known = made
        else:
            with step(self.progress, f"Checking {name}, made before"):
                for record in known.files:
                    check_file(self.out / record.path, record)
        self.artifacts[name] = known
        self.used.append(name)
        self._save()
        return known

    def drop(self, name: str) -> None:
        """Remove an artifact that was needed only to make others."""
        self._remove({*self.artifacts.pop(name).files})
        self.used.remove(name)

    def files(self) -> dict[str, FileRecord]:
        """Every file of every complete artifact, including those of earlier calls."""
        whole = (artifact for artifact in self.artifacts.values() if self._is_there(artifact))
        return {record.path: record for artifact in whole for record in artifact.files}

    def as_json(self) -> dict[str, Any]:
        """The complete artifacts, for the state file and the manifest."""
        return {
            name: dataclasses.asdict(artifact) for name, artifact in self.artifacts.items() if self._is_there(artifact)
        }

    def forget_state(self) -> None:
        """Remove the state file once the manifest is written."""
        (self.out / STATE_NAME).unlink(missing_ok=True)

    def _open(self) -> None:
        """Reopen a finished folder before a file in it changes: save the state, remove the manifest."""
        if is_finished(self.out):
            self._save()
            (self.out / MANIFEST_NAME).unlink()

    def _save(self) -> None:
        write_json(self.out / STATE_NAME, {"key": self.key, "artifacts": self.as_json()})

    def _remove(self, records: Iterable[FileRecord]) -> None:
        kept = {record.path for artifact in self.artifacts.values() for record in artifact.files}
        for path in {record.path for record in records} - kept:
            (self.out / path).unlink(missing_ok=True)

    def _is_there(self, artifact: Artifact) -> bool:
        paths = ((self.out / record.path, record.size_bytes) for record in artifact.files)
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def _earlier(self) -> dict[str, Artifact]:
        """Artifacts of an interrupted or finished export of the same model in this folder."""
        earlier: dict[str, Artifact] = {}
        if is_finished(self.out):
            facts = read_manifest(self.out).facts
            if facts.get("key") != self.key:
                raise ArtifactError(
                    f"{self.out}: holds the export of another adapter or base. Choose another folder with --out."
                )
            earlier |= _read_artifacts(facts)
        state = self.out / STATE_NAME
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
            if saved["key"] == self.key:
                earlier |= _read_artifacts(saved)
        except FileNotFoundError:
            pass  # no export was interrupted here
        except (ValueError, KeyError, TypeError, AttributeError):
            state.unlink()  # unreadable: everything is made again
        return earlier


def _read_artifacts(saved: Mapping[str, Any]) -> dict[str, Artifact]:
    return {
        name: Artifact(
            artifact["made_from"], tuple(FileRecord(**each) for each in artifact["files"]), artifact["facts"]
        )
        for name, artifact in (saved.get("artifacts") or saved.get("pieces") or {}).items()
    }
