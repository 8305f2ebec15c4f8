"""Is a model file the one that its manifest describes? If no manifest lists it, does it load without a crash?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gladstone.artifacts import MANIFEST_NAME, PROOF_NAME, Manifest, check_file, read_manifest, sha256_file
from gladstone.errors import ArtifactError
from runtime.trust.checked_files import Stamp, is_checked, mark_checked
from runtime.trust.load_check import check_loadable

if TYPE_CHECKING:
    from gladstone.gguf.header import GgufInfo

VERIFIED, NO_MANIFEST = "verified", "no manifest"


@dataclass(frozen=True)
class Provenance:
    """What the files beside a model say about it: `manifest` is "verified", or "no manifest" with a reason."""

    manifest: str
    stage: str | None = None
    proof_passed: bool | None = None
    template_date: str | None = None  # the date in training, for a chat template that writes today's date

    @property
    def is_verified(self) -> bool:
        """Whether the file is the one that a manifest describes."""
        return self.manifest == VERIFIED


def verify(path: Path) -> Provenance:
    """Check, before the model is loaded, that this process can load it safely.

    A file that a manifest lists must have the recorded size and hash; any other is checked in a child process. A passed
    check holds until the file changes. Raises ArtifactError for a file that must not be loaded.
    """
    from gladstone.gguf.header import read_model, summarize_model

    manifest = _manifest_of(path)
    if manifest is None:
        check_loadable(path)
        return _unproven(path)
    kind = f"manifest {sha256_file(path.parent / MANIFEST_NAME)}"
    if is_checked(kind, path):
        return Provenance(VERIFIED, manifest.stage, _read_proof(path.parent / PROOF_NAME))
    headers = read_model(path)
    stamps = [Stamp.of(header.path, header.data_offset) for header in headers]
    provenance = check_provenance(summarize_model(headers))
    mark_checked(kind, path, stamps)
    return provenance


def check_provenance(facts: "GgufInfo") -> Provenance:
    """Compare the file with the manifest in its folder. Raises ArtifactError if size, hash or template differ."""
    manifest = _manifest_of(facts.path)
    if manifest is None:
        return _unproven(facts.path)
    for part in facts.parts:
        check_file(part, manifest.record(part.name))
    if manifest.template_sha256 is not None and manifest.template_sha256 != facts.template_sha256:
        raise ArtifactError(
            f"{facts.path}: its chat template has the sha256 {facts.template_sha256}, the manifest says "
            f"{manifest.template_sha256}: trained on one template, served on another. Export the model again."
        )
    date = manifest.facts.get("template_date")
    return Provenance(
        VERIFIED, manifest.stage, _read_proof(facts.path.parent / PROOF_NAME), str(date) if date else None
    )


def _manifest_of(path: Path) -> Manifest | None:
    """The manifest beside the file, if it lists the file."""
    if not (path.parent / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(path.parent)
    return manifest if path.name in {record.path for record in manifest.files} else None


def _unproven(path: Path) -> Provenance:
    there = (path.parent / MANIFEST_NAME).is_file()
    why = f" (the one beside it does not list {path.name})" if there else ""
    return Provenance(NO_MANIFEST + why, proof_passed=_read_proof(path.parent / PROOF_NAME))


def _read_proof(path: Path) -> bool | None:
    if not path.exists():
        return None
    try:
        passed = json.loads(path.read_text(encoding="utf-8"))["passed"]
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        passed = None
    if not isinstance(passed, bool):
        raise ArtifactError(f'{path}: not a proof: expected an object with "passed": true or false.')
    return passed
