"""`gladstone export merge`: base and adapter as an ordinary folder of safetensors, for what reads no GGUF."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.adapter import CONFIG, WEIGHTS
from export.merge import Onto, Plan, copy_config, planned_shards, read_plan, write_index, write_shard
from export.run import (
    Run,
    check_accepted,
    check_apart,
    check_unchanged,
    open_run,
    read_run_manifest,
    serious_warnings,
)
from export.shards import Planned
from export.workbench import Made, Workbench
from gladstone.artifacts import (
    MANIFEST_NAME,
    Manifest,
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
from gladstone.lock import held
from gladstone.progress import Progress, step
from gladstone.tokenizer import tokenizer_files

LOG_NAME = "export.log"
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
    accepted: bool = False  # also a run whose training went wrong


def merge_run(merging: Merging, out: Path, progress: Progress) -> list[Path]:
    """Write the merged model of a finished run into `out`, its manifest last; returns the files of the weights.

    Raises ArtifactError for a folder that holds something else and for a training that went wrong and is not accepted,
    UnsupportedError for adapters that do not fit.
    """
    manifest = read_run_manifest(merging.run)
    beside = [f"{folder}: {text}" for folder, _ in merging.others for text in _warnings_beside(folder)]
    check_accepted(merging.run, [*serious_warnings(manifest.facts), *beside], accepted=merging.accepted)
    run = open_run(merging.run, manifest, progress)
    adapters = ((run.folder / "adapter", merging.weight), *merging.others)
    plan = read_plan(run.base.folder, adapters, merging.onto)
    shards = planned_shards(plan, merging.shard_bytes)
    _check_target(run, out, shards)
    needed = sum(stored.size_bytes for stored in plan.sources.values())
    check_disk(out, needed + (1 << 20), "the merged model")
    with held(out / LOG_NAME, "merging"):
        remove_partials(out)
        bench = Workbench(out, _key(run, merging), progress)
        for file, tensors in shards.items():
            bench.piece(file, [tensor.name for tensor in tensors], _shard(plan, out / file, tensors, progress))
        check_unchanged(run)
        files = [out / file for file in shards] + write_index(shards, out)
        files += copy_config(plan, run.base.folder, out) + _copy_tokenizer(run, out)
        write_manifest(out, _manifest(run, merging, plan, bench, files))
        bench.forget_state()
    return [out / file for file in shards]


def _warnings_beside(adapter: Path) -> list[str]:
    """What the manifest of the run says in whose folder an adapter lies; nothing of one that lies elsewhere."""
    run = adapter.resolve().parent
    return serious_warnings(read_manifest(run).facts) if is_finished(run) else []


def _shard(plan: Plan, path: Path, tensors: Sequence[Planned], progress: Progress) -> Callable[[], Made]:
    def written() -> Made:
        with step(progress, f"Merging {path.name}") as running:
            write_shard(plan, path, tensors, running)
        return [path], {}

    return written


def _manifest(run: Run, merging: Merging, plan: Plan, bench: Workbench, files: Sequence[Path]) -> Manifest:
    return Manifest(
        stage="merge",
        files=tuple(record_file(bench.out, path) for path in files),
        parents={"run": sha256_file(run.folder / MANIFEST_NAME), "base": run.base.fingerprint},
        config={"name": run.name, "base": run.base.name, "onto": merging.onto},
        versions=installed_versions(*VERSIONED),
        template_sha256=run.manifest.template_sha256,
        seed=run.manifest.seed,
        facts={
            "changed_tensors": len(plan.changed),
            "head_untied": plan.untied,
            "training_warnings": serious_warnings(run.manifest.facts),
            "key": bench.key,
            "pieces": bench.as_json(),
        },
    )


def _key(run: Run, merging: Merging) -> str:
    """Changes with anything that the weights are made from, or are cut by."""
    adapters = ((run.folder / "adapter", merging.weight), *merging.others)
    parts = [f"{sha256_file(folder / name)} {weight}" for folder, weight in adapters for name in (WEIGHTS, CONFIG)]
    parts += [run.base.fingerprint, merging.onto, str(merging.shard_bytes)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _check_target(run: Run, out: Path, files: Collection[str]) -> None:
    """Raises ArtifactError if the files would go among those of the run, of the base or of another model."""
    check_apart(run, out)
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
