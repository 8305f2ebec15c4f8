"""Which pieces of an export are whole, remembered in a file: a stopped export goes on from there."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

STATE_NAME = ".export-state.json"


@dataclass(frozen=True)
class Piece:
    """Files that were made together, what they were made from, and what is to be told of them."""

    made_from: str
    files: tuple[FileRecord, ...]
    facts: dict[str, Any] = field(default_factory=dict)


Made = tuple[Iterable[Path], dict[str, Any]]


class Workbench:
    """Makes the pieces of an export in a folder, each once."""

    def __init__(self, out: Path, key: str, progress: Progress) -> None:
        """`key` changes with the model. Raises ArtifactError if the folder holds the export of another."""
        self.out, self.key, self.progress = out, key, progress
        self.pieces = self._earlier()
        self.used: list[str] = []

    def piece(self, name: str, made_from: Iterable[object], make: Callable[[], Made]) -> Piece:
        """The piece as it was made before from the same, else as `make` makes it."""
        digest = hashlib.sha256("\0".join(map(str, made_from)).encode("utf-8", "surrogatepass")).hexdigest()
        known = self.pieces.get(name)
        if known is None or known.made_from != digest or not self._is_there(known):
            self._open()
            files, facts = make()
            made = Piece(digest, tuple(record_file(self.out, path) for path in files), facts)
            self._remove(set(known.files if known else ()) - {*made.files})
            known = made
        else:
            with step(self.progress, f"Checking {name}, made before"):
                for record in known.files:
                    check_file(self.out / record.path, record)
        self.pieces[name] = known
        self.used.append(name)
        self._save()
        return known

    def drop(self, name: str) -> None:
        """Remove a piece's files: it was needed for others alone."""
        self._remove({*self.pieces.pop(name).files})
        self.used.remove(name)

    def files(self) -> dict[str, FileRecord]:
        """Every file of every piece that is there, those of earlier calls included."""
        whole = (piece for piece in self.pieces.values() if self._is_there(piece))
        return {record.path: record for piece in whole for record in piece.files}

    def as_json(self) -> dict[str, Any]:
        """For the state and the manifest."""
        return {name: dataclasses.asdict(piece) for name, piece in self.pieces.items() if self._is_there(piece)}

    def forget_state(self) -> None:
        """Called when the manifest is written."""
        (self.out / STATE_NAME).unlink(missing_ok=True)

    def _open(self) -> None:
        """Before a file of a finished folder changes: what is known goes into the state, and it is finished no more."""
        if is_finished(self.out):
            self._save()
            (self.out / MANIFEST_NAME).unlink()

    def _save(self) -> None:
        write_json(self.out / STATE_NAME, {"key": self.key, "pieces": self.as_json()})

    def _remove(self, records: Iterable[FileRecord]) -> None:
        kept = {record.path for piece in self.pieces.values() for record in piece.files}
        for path in {record.path for record in records} - kept:
            (self.out / path).unlink(missing_ok=True)

    def _is_there(self, piece: Piece) -> bool:
        paths = ((self.out / record.path, record.size_bytes) for record in piece.files)
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def _earlier(self) -> dict[str, Piece]:
        """Pieces in the folder, from a stopped export or a finished one of the same model."""
        earlier: dict[str, Piece] = {}
        if is_finished(self.out):
            facts = read_manifest(self.out).facts
            if facts.get("key") != self.key:
                raise ArtifactError(
                    f"{self.out}: holds the export of another adapter or base. Choose another folder with --out."
                )
            earlier |= _read_pieces(facts.get("pieces", {}))
        state = self.out / STATE_NAME
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
            if saved["key"] == self.key:
                earlier |= _read_pieces(saved["pieces"])
        except FileNotFoundError:
            pass  # nothing was stopped here
        except (ValueError, KeyError, TypeError, AttributeError):
            state.unlink()  # unusable: everything is made again
        return earlier


def _read_pieces(saved: Mapping[str, Any]) -> dict[str, Piece]:
    return {
        name: Piece(piece["made_from"], tuple(FileRecord(**each) for each in piece["files"]), piece["facts"])
        for name, piece in saved.items()
    }
