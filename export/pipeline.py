"""`gladstone export gguf`: from a run, an adapter or a model to proven GGUF files."""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artifact_cache import ArtifactCache
from export.build import (
    MATRIX,
    ExportBuilder,
    ExportOptions,
    check_end,
    check_options,
    check_vocabulary,
    choose_onto,
    conversion_of,
    model_key,
)
from export.convert.convert import outline
from export.convert.lora_gguf import LORA
from export.merge.plan import Onto, check_shapes, read_plan
from export.original.finding import default_out, find, opened
from export.original.model import SourceOptions, check_accepted
from export.preflight import check_plan, plan_proof, read_calibration
from export.proof.check import Check
from export.proof.file import proof_page, verify_file
from export.proof.trained import date_note, trained_of
from export.publish.metadata import about_model
from export.publish.model_card import NAME as CARD_NAME
from export.publish.model_card import Card
from export.publish.write import MODELFILES, common_system, write_card, write_modelfile
from export.quantise import size_estimate as fit
from gladstone.artifacts import (
    PROOF_NAME,
    Manifest,
    record_file,
    remove_partials,
    write_json,
    write_manifest,
    write_text,
)
from gladstone.chat.template import template_sha256
from gladstone.commands.progress import Progress
from gladstone.gguf.header import read_header, read_info
from gladstone.llamacpp.lora import Lora
from gladstone.machine.host import check_disk
from gladstone.machine.packages import installed_versions
from gladstone.process.lock import lock_folder
from gladstone.process.redirect_output import redirect_output

VERSIONED = ("llama-cpp-python", "torch", "transformers", "peft")
PAGE_NAME, LOG_NAME = "proof.txt", "export.log"


@dataclass(frozen=True)
class Export:
    """The result of an export: its files by name, the checks of each model, and notes for the user."""

    folder: Path
    files: dict[str, Path]
    proof: dict[str, list[Check]]
    notes: tuple[str, ...]


def export_gguf(
    path: Path, source_options: SourceOptions, options: ExportOptions, out: Path | None, progress: Progress
) -> Export:
    """Merge, convert, quantise and prove the source at `path` into `out` (default FOLDER/gguf), the manifest last.

    Artifacts that an interrupted call finished are reused. Raises ArtifactError if the training went wrong and
    `options` do not accept that, or if the proof fails: the files stay for inspection, without a manifest.
    Raises UnsupportedError before anything is written if the memory does not suffice for the proof.
    """
    options = options.checked()
    found = find(path, source_options)
    out = out or default_out(found, "lora" if options.lora else "gguf")
    check_accepted(found.home, found.warnings, accepted=options.accepted)
    with lock_folder(out / LOG_NAME, "exporting"), redirect_output(out / LOG_NAME), opened(found, progress) as original:
        remove_partials(out)
        original.check_apart(out)
        check_options(original, options)
        growth = check_vocabulary(original, options)
        text = read_calibration(original, options.imatrix, options.imatrix_chunks)
        check_plan(conversion_of(original, about_model(original), original.adapter, "16bit"), options.plan, progress)
        others = len({*options.quants} - {options.intermediate}) * (1 + options.with_base)
        plan_proof(original, "nf4" if options.onto == "nf4" else "16bit", others, progress)
        onto, notes = choose_onto(original, options, out, progress)
        builder = ExportBuilder(
            original, options, onto, ArtifactCache(out, model_key(original, onto), progress), progress
        )
        check_end(original, builder.base)
        builder.growth = growth
        builder.notes += [*original.notes, *notes, *date_note(original, builder.base.template)]
        check_disk(out, builder.needed_bytes(), "the GGUF files")
        builder.calibration = text
        proof = builder.build()
        original.check_unchanged()
        return _finish(builder, proof)


def export_sizes(  # noqa: PLR0913, PLR0917 - one parameter an option
    path: Path,
    source_options: SourceOptions,
    options: ExportOptions,
    context: int,
    fit_bytes: int | None,
    progress: Progress,
) -> list[fit.Size]:
    """The size of each type, or the best type that fits `fit_bytes`. Reads no weight and writes nothing.

    Raises ConfigError if no type fits.
    """
    options = options.checked()
    with (
        tempfile.TemporaryDirectory() as work,
        redirect_output(Path(work) / LOG_NAME),
        opened(find(path, source_options), progress) as original,
    ):
        header = Path(work) / "outline.gguf"
        # the precision of the base changes no size
        outline(conversion_of(original, about_model(original), original.adapter, "16bit"), header, progress)
        if fit_bytes is not None:
            return [fit.best_fit(header, fit_bytes, options.overrides, context, imatrix=options.imatrix is not None)]
        return fit.sizes(header, options.quants, options.overrides, context)


def verify_against(  # noqa: PLR0913, PLR0917 - one parameter an option
    path: Path, folder: Path, source_options: SourceOptions, onto: Onto, loras: Sequence[Lora], progress: Progress
) -> list[Check]:
    """Prove any GGUF against a run, an adapter or a model: `gladstone export verify FILE --against FOLDER`."""
    read_info(path)
    found = find(folder, source_options)
    with (
        tempfile.TemporaryDirectory() as work,
        redirect_output(Path(work) / LOG_NAME),
        opened(found, progress) as original,
    ):
        check_shapes(read_plan(original.base.folder, original.adapters, onto))
        return verify_file(path, trained_of(original, onto), progress, loras)


def _finish(builder: ExportBuilder, proof: dict[str, list[Check]]) -> Export:
    original, cache = builder.original, builder.cache
    said = _proof_json(builder, proof)
    write_json(cache.out / PROOF_NAME, said)
    write_text(cache.out / PAGE_NAME, proof_page(proof, said["against"], said["files"]))
    names = [record.path for artifact in builder.artifacts() for record in artifact.files]
    made = {name: cache.out / name for name in sorted(names, key=lambda name: name.endswith((MATRIX, LORA)))}
    page = [PROOF_NAME, PAGE_NAME, *_write_publish_files(builder, proof, made)]
    files = cache.files()
    models = [name for name in files if not name.endswith(MATRIX)]
    manifest = Manifest(
        stage="export",
        files=(*files.values(), *(record_file(cache.out, cache.out / name) for name in page)),
        parents=dict(original.parents),
        config={
            "name": original.name,
            "base": builder.about.base_name,
            "onto": builder.onto,
            "origin": original.origin,
        },
        versions=installed_versions(*VERSIONED),
        template_sha256=template_sha256(original.template_source),
        seed=original.training.seed,
        facts={
            "key": cache.key,
            "artifacts": cache.as_json(),
            "tensor_types": {name: _tensor_types(cache.out / name) for name in models},
            "template_date": date.isoformat() if (date := original.training.template_date) else None,
            "training_warnings": original.warnings,
            "unknown": list(original.training.unknown),
        },
    )
    write_manifest(cache.out, manifest)
    cache.forget_state()
    return Export(cache.out, made, proof, tuple(dict.fromkeys(builder.notes)))


def _write_publish_files(
    builder: ExportBuilder, proof: Mapping[str, Sequence[Check]], made: Mapping[str, Path]
) -> list[str]:
    """Write Modelfile and model card; returns their names."""
    out, about = builder.cache.out, builder.about
    model, lora = next(iter(made.values())), next((path for name, path in made.items() if name.endswith(LORA)), None)
    no_ollama = write_modelfile(builder.base, model, lora, about, common_system(builder.base.rows))
    if no_ollama:
        builder.notes.append(f"no Modelfile for Ollama: {no_ollama}.")
    card = Card(
        about=about,
        training=builder.original.training,
        rows=builder.original.rows,
        held_out=builder.held_out,
        proof=proof,
        files={name: path for name, path in made.items() if not name.endswith(MATRIX)},
        onto=builder.onto,
        ollama=no_ollama,
        vocabulary=builder.growth.describe() if builder.growth else None,
    )
    write_card(card, out)
    return [CARD_NAME, *(name for name in MODELFILES if (out / name).is_file())]


def _tensor_types(path: Path) -> dict[str, int]:
    """The number of tensors of each type in a file or in one part of it."""
    return dict(Counter(tensor.type_name for tensor in read_header(path, is_model=False).tensors))


def _proof_json(builder: ExportBuilder, proof: dict[str, list[Check]]) -> dict[str, Any]:
    return {
        "passed": all(check.passed for checks in proof.values() for check in checks),
        "against": builder.describe_source(),
        "models": {name: [dataclasses.asdict(check) for check in checks] for name, checks in proof.items()},
        "held_out": {name: loss.as_json() for name, loss in builder.held_out.items()},
        "files": {record.path: record.sha256 for artifact in builder.artifacts() for record in artifact.files},
        "versions": installed_versions(*VERSIONED),
    }
