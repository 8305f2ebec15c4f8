"""A finished fine-tuning run, checked, with the base that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gladstone.artifacts import Manifest, check_files, read_manifest
from gladstone.basemodel import Base, fingerprint, resolve_base
from gladstone.errors import ArtifactError, listed
from gladstone.progress import Progress


@dataclass(frozen=True)
class Run:
    """A finished fine-tuning run and the base it was trained on."""

    folder: Path
    manifest: Manifest
    base: Base

    @property
    def name(self) -> str:
        """The recipe's name, which the files carry."""
        return str(self.manifest.config["name"])

    @property
    def template_source(self) -> str:
        """The chat template as trained."""
        return (self.folder / "chat_template.jinja").read_text(encoding="utf-8")

    @property
    def template_date(self) -> datetime | None:
        """The time that the chat template wrote while training; None if it writes none, or the run does not say."""
        found = self.manifest.config["base"].get("template_date")
        return datetime.fromisoformat(found) if found else None


def read_run_manifest(folder: Path) -> Manifest:
    """The manifest of a folder that `finetune run` finished, its files whole. Raises ArtifactError otherwise."""
    manifest = read_manifest(folder)
    if manifest.stage != "finetune":
        raise ArtifactError(
            f"{folder}: made by the stage {manifest.stage!r}, expected a folder made by `finetune run`."
        )
    check_files(folder, manifest)
    return manifest


def serious_warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a run's own manifest says of a training that went wrong, in sentences without their ends."""
    found = facts.get("warnings") or []
    return [str(each.get("text")) for each in found if isinstance(each, dict) and each.get("serious")]


def check_accepted(folder: Path, warnings: Sequence[str], *, accepted: bool) -> None:
    """Raises ArtifactError with what went wrong in the training of `folder`'s model, unless the caller accepts it."""
    if warnings and not accepted:
        raise ArtifactError(
            f"{listed(f'{folder}: its training went wrong', warnings)}\nTrain again, or go on all the same with --yes."
        )


def check_apart(run: Run, out: Path) -> None:
    """Raises ArtifactError if an export would go among the files that it is made from."""
    for taken, what in ((run.folder, "the run"), (run.base.folder, "the base")):
        if out.exists() and out.samefile(taken):
            raise ArtifactError(f"{out}: is the folder of {what}. Choose another one with --out.")


def check_unchanged(run: Run) -> None:
    """Raises ArtifactError if base or adapter are not what they were when the run was opened."""
    check_files(run.folder, run.manifest)
    if fingerprint(run.base.folder) != run.base.fingerprint:
        raise ArtifactError(f"{run.base.folder}: the base has changed while it was read. Export again.")


def open_run(folder: Path, manifest: Manifest, progress: Progress) -> Run:
    """The run of a manifest and its base. Raises ArtifactError if that is not the one it was trained on."""
    base = resolve_base(str(manifest.config["base"]["model"]), progress)
    if base.fingerprint != manifest.parents["base"]:
        raise ArtifactError(f"{base.folder}: not the base that the adapter was trained on (its files have changed).")
    return Run(folder, manifest, base)
