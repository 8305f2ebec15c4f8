"""`gladstone export merge`: base and adapter as an ordinary folder of safetensors, for what reads no GGUF."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from export.merge import Onto, planned_shards, read_plan, write_folder
from export.run import Run, open_run, read_run_manifest
from gladstone.artifacts import (
    MANIFEST_NAME,
    Manifest,
    check_writable,
    copy_file,
    is_finished,
    read_manifest,
    record_file,
    remove_partials,
    sha256_file,
    write_manifest,
)
from gladstone.errors import ArtifactError
from gladstone.host import check_disk, installed_versions
from gladstone.progress import Progress, step
from gladstone.tokenizer import tokenizer_files

SHARD_BYTES = 2_000_000_000
VERSIONED = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Merging:
    """What to merge: a run, onto its base in 16 bit or as NF4, with further adapters and their weights."""

    run: Path
    onto: Onto = "16bit"
    weight: float = 1.0
    others: tuple[tuple[Path, float], ...] = ()
    shard_bytes: int = SHARD_BYTES


def merge_run(merging: Merging, out: Path, progress: Progress) -> list[Path]:
    """Write the merged model of a finished run into `out`, its manifest last; returns the files of the weights.

    Raises ArtifactError for a folder that holds something else, UnsupportedError for adapters that do not fit.
    """
    run = open_run(merging.run, read_run_manifest(merging.run), progress)
    adapters = ((run.folder / "adapter", merging.weight), *merging.others)
    plan = read_plan(run.base.folder, adapters, merging.onto)
    _check_target(run, out, planned_shards(plan, merging.shard_bytes))
    needed = sum(stored.size_bytes for stored in plan.sources.values())
    check_disk(out, needed + (1 << 20), "the merged model")
    check_writable(out)
    remove_partials(out)
    with step(progress, "Merging") as running:
        files = write_folder(plan, run.base.folder, out, merging.shard_bytes, running)
    files += _copy_tokenizer(run, out)
    manifest = Manifest(
        stage="merge",
        files=tuple(record_file(out, path) for path in files),
        parents={"run": sha256_file(run.folder / MANIFEST_NAME), "base": run.base.fingerprint},
        config={"name": run.name, "base": run.base.name, "onto": merging.onto},
        versions=installed_versions(*VERSIONED),
        template_sha256=run.manifest.template_sha256,
        seed=run.manifest.seed,
        facts={"changed_tensors": len(plan.changed), "head_untied": plan.untied},
    )
    write_manifest(out, manifest)
    return [path for path in files if path.suffix == ".safetensors"]


def _check_target(run: Run, out: Path, files: Collection[str]) -> None:
    """Raises ArtifactError if the files would go among those of the run, of the base or of another model."""
    for taken, what in ((run.folder, "the run"), (run.base.folder, "the base")):
        if out.exists() and out.samefile(taken):
            raise ArtifactError(f"{out}: is the folder of {what}. Choose another one with --out.")
    if is_finished(out) and read_manifest(out).stage != "merge":
        raise ArtifactError(f"{out}: holds another stage's files. Choose another folder with --out.")
    others = sorted(path.name for path in out.glob("*.safetensors") if path.name not in files)
    if others:
        raise ArtifactError(f"{out}: holds other weights ({others[0]}). Choose another folder with --out.")


def _copy_tokenizer(run: Run, out: Path) -> list[Path]:
    sources = tokenizer_files(run.folder / "tokenizer")
    for source in sources:
        copy_file(source, out / source.name)
    return [out / source.name for source in sources]
