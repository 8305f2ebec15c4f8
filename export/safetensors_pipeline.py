"""`gladstone export merge`: base and adapters merged into a model folder of safetensors."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.artifact_cache import ArtifactCache, Made
from export.merge.plan import (
    MERGED_ONTO,
    ONTO_SAID,
    MergePlan,
    Onto,
    check_shapes,
    copy_config,
    planned_shards,
    read_plan,
    write_index,
    write_shard,
)
from export.merge.vocabulary_growth import find_vocabulary_growth
from export.original.finding import default_out, find, opened
from export.original.model import Original, SourceOptions, Training, check_accepted, serious_warnings
from export.tensors.safetensors_io import TensorSpec
from export.tensors.weights import weights_of
from gladstone import file_names
from gladstone.artifacts import (
    Manifest,
    copy_file,
    is_finished,
    read_manifest,
    record_file,
    remove_partials,
    sha256_file,
    write_manifest,
)
from gladstone.chat.template import template_sha256
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError
from gladstone.machine.host import check_disk
from gladstone.machine.packages import installed_versions
from gladstone.models.tokenizer import end_of_turn_token, load_tokenizer, tokenizer_files
from gladstone.process.lock import lock_folder

LOG_NAME = "export.log"
SHARD_BYTES = 2_000_000_000
VERSIONED = ("torch", "transformers", "peft")
DEFAULT_SOURCE_OPTIONS = SourceOptions()


@dataclass(frozen=True)
class MergeOptions:
    """What to merge: a run, adapter or model, the precision of its base, and further adapters with their weights."""

    path: Path
    onto: Onto = "16bit"
    weight: float = 1.0
    others: tuple[tuple[Path, float], ...] = ()
    shard_bytes: int = SHARD_BYTES
    accepted: bool = False  # also a run whose training went wrong
    source_options: SourceOptions = DEFAULT_SOURCE_OPTIONS

    def adapters(self, original: Original) -> tuple[tuple[Path, float], ...]:
        """The adapters to merge with their weights. Raises ConfigError for a weight without an adapter."""
        if original.adapter is None:
            if self.weight != 1.0:
                raise ConfigError(f"--weight: {original.home} is a model folder without an adapter.")
            return self.others
        return ((original.adapter, self.weight), *self.others)


def merge_run(options: MergeOptions, out: Path | None, progress: Progress) -> list[Path]:
    """Write the merged model into `out` (default FOLDER/merged), the manifest last; returns the weight files.

    Raises ArtifactError for a folder that holds something else, or if the training went wrong and `options` do not
    accept that; UnsupportedError for adapters that do not fit the base.
    """
    found = find(options.path, options.source_options)
    out = out or default_out(found, "merged")
    beside = [f"{folder}: {text}" for folder, _ in options.others for text in _warnings_beside(folder)]
    check_accepted(found.home, [*found.warnings, *beside], accepted=options.accepted)
    with opened(found, progress) as original:
        return _merge(original, options, out, progress)


def _merge(original: Original, options: MergeOptions, out: Path, progress: Progress) -> list[Path]:
    plan = read_plan(original.base.folder, options.adapters(original), options.onto)
    check_shapes(plan)
    growth = find_vocabulary_growth(original.base.folder, original.tokenizer, plan)
    tokenizer = load_tokenizer(original.tokenizer)
    ends = [end for end in (tokenizer.eos_id, end_of_turn_token(tokenizer)) if end is not None]
    shards = planned_shards(plan, options.shard_bytes)
    _check_target(original, out, shards)
    needed = sum(stored.size_bytes for stored in plan.sources.values())
    check_disk(out, needed + (1 << 20), "the merged model")
    with lock_folder(out / LOG_NAME, "merging"):
        remove_partials(out)
        cache = ArtifactCache(out, _key(original, options), progress)
        if growth:
            with step(progress, growth.describe()[:-1]):
                pass
        for file, tensors in shards.items():
            cache.artifact(file, [tensor.name for tensor in tensors], _shard(plan, out / file, tensors, progress))
        original.check_unchanged()
        files = [out / file for file in shards] + write_index(shards, out)
        files += copy_config(plan, original.base.folder, out, ends) + _copy_tokenizer(original, out)
        write_manifest(out, _manifest(original, options, plan, cache, files))
        cache.forget_state()
    return [out / file for file in shards]


def _warnings_beside(adapter: Path) -> list[str]:
    """Warnings in the manifest of the run that holds an adapter; empty for an adapter outside a run."""
    run = adapter.resolve().parent
    return serious_warnings(read_manifest(run).facts) if is_finished(run) else []


def _shard(plan: MergePlan, path: Path, tensors: Sequence[TensorSpec], progress: Progress) -> Callable[[], Made]:
    def written() -> Made:
        with step(progress, f"Merging {path.name}") as running:
            write_shard(plan, path, tensors, running)
        return [path], {}

    return written


def _manifest(
    original: Original, options: MergeOptions, plan: MergePlan, cache: ArtifactCache, files: Sequence[Path]
) -> Manifest:
    return Manifest(
        stage="merge",
        files=tuple(record_file(cache.out, path) for path in files),
        parents=dict(original.parents),
        config={"name": original.name, "base": original.base.name, "onto": options.onto, "origin": original.origin},
        versions=installed_versions(*VERSIONED),
        template_sha256=template_sha256(original.template_source),
        seed=original.training.seed,
        facts={
            "changed_tensors": len(plan.changed),
            "head_untied": plan.untied,
            "vocabulary": {"before": plan.sizes.before, "after": plan.sizes.after} if plan.sizes else None,
            "training_warnings": original.warnings,
            "training": _training(original, options).as_json(),
            "key": cache.key,
            "artifacts": cache.as_json(),
        },
    )


def _training(original: Original, options: MergeOptions) -> Training:
    """What is known of the merged model's training, with the merge added to its settings."""
    others = ", ".join(f"{folder.name} × {weight:g}" for folder, weight in options.others)
    rows = [("scale", f"{options.weight:g}")] if options.weight != 1 else []
    rows += [("further adapters", others)] if others else []
    rows += [(MERGED_ONTO, ONTO_SAID[options.onto])] if original.adapter else []
    return replace(original.training, settings=(*original.training.settings, *rows))


def _key(original: Original, options: MergeOptions) -> str:
    """A hash over everything that the weight files are made from, and the shard size."""
    files = [
        (path, weight)
        for folder, weight in options.adapters(original)
        for path in (weights_of(folder), folder / file_names.ADAPTER_CONFIG)
    ]
    parts = [f"{sha256_file(path)} {weight}" for path, weight in files]
    parts += [original.base.fingerprint, options.onto, str(options.shard_bytes)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _check_target(original: Original, out: Path, files: Collection[str]) -> None:
    """Raises ArtifactError if the folder belongs to the run, the base or another model."""
    original.check_apart(out)
    if is_finished(out) and read_manifest(out).stage != "merge":
        raise ArtifactError(f"{out}: holds the files of another stage. Choose another folder with --out.")
    others = sorted(path.name for path in out.glob(file_names.WEIGHTS_PATTERN) if path.name not in files)
    if others:
        raise ArtifactError(f"{out}: holds other weights ({others[0]}). Choose another folder with --out.")


def _copy_tokenizer(original: Original, out: Path) -> list[Path]:
    sources = tokenizer_files(original.tokenizer)
    for source in sources:
        copy_file(source, out / source.name)
    return [out / source.name for source in sources]
