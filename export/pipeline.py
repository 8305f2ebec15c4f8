"""`gladstone export gguf`: from a run, an adapter or a model to proven GGUF files."""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artifact_cache import Workbench
from export.build import (
    MATRIX,
    Making,
    Wanted,
    check_end,
    check_makes,
    check_vocabulary,
    choose_onto,
    conversion_of,
    model_key,
)
from export.convert.convert import outline
from export.convert.lora_gguf import LORA
from export.merge.plan import Onto, check_shapes, read_plan
from export.original.finding import default_out, find, opened
from export.original.model import Asked, check_accepted
from export.preflight import check_plan, read_calibration
from export.proof.file import proof_page, verify_file
from export.proof.point import Point
from export.proof.trained import date_note, trained_of
from export.publish.metadata import about_model
from export.publish.model_card import NAME as CARD_NAME
from export.publish.model_card import Card
from export.publish.write import MODELFILES, common_system, write_card, write_modelfile
from export.quantise import size_estimate as fit
from gladstone.artifacts import (
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
from gladstone.process.lock import held
from gladstone.process.redirect_output import redirect_output

VERSIONED = ("llama-cpp-python", "torch", "transformers", "peft")
PROOF_NAME, PAGE_NAME, LOG_NAME = "proof.json", "proof.txt", "export.log"


@dataclass(frozen=True)
class Export:
    """What came out: the files by name, the points of each proof, and what a user has to know of them."""

    folder: Path
    files: dict[str, Path]
    proof: dict[str, list[Point]]
    notes: tuple[str, ...]


def export_gguf(path: Path, asked: Asked, wanted: Wanted, out: Path | None, progress: Progress) -> Export:
    """Merge, convert, quantise and prove what lies at `path` into `out` (default FOLDER/gguf); the manifest is last.

    What an earlier, stopped call finished is used again. Raises ArtifactError if the training went wrong and that is
    not accepted, or if the proof fails: the files stay, for looking into, without a manifest.
    """
    wanted = wanted.checked()
    found = find(path, asked)
    out = out or default_out(found, "lora" if wanted.lora else "gguf")
    check_accepted(found.home, found.warnings, accepted=wanted.accepted)
    with held(out / LOG_NAME, "exporting"), redirect_output(out / LOG_NAME), opened(found, progress) as original:
        remove_partials(out)
        original.check_apart(out)
        check_makes(original, wanted)
        growth = check_vocabulary(original, wanted)
        text = read_calibration(original, wanted.imatrix, wanted.imatrix_chunks)
        check_plan(conversion_of(original, about_model(original), original.adapter, "16bit"), wanted.plan, progress)
        onto, notes = choose_onto(original, wanted, out, progress)
        making = Making(original, wanted, onto, Workbench(out, model_key(original, onto), progress), progress)
        check_end(original, making.base)
        making.growth = growth
        making.notes += [*original.notes, *notes, *date_note(original, making.base.template)]
        check_disk(out, making.needed_bytes(), "the GGUF files")
        making.calibration = text
        proof = making.all()
        original.check_unchanged()
        return _finish(making, proof)


def export_sizes(  # noqa: PLR0913, PLR0917 - one parameter an option
    path: Path, asked: Asked, wanted: Wanted, context: int, fit_bytes: int | None, progress: Progress
) -> list[fit.Size]:
    """What each type would weigh, or the one that fits; no weight is read and nothing is kept.

    Raises ConfigError if none fits.
    """
    wanted = wanted.checked()
    with (
        tempfile.TemporaryDirectory() as work,
        redirect_output(Path(work) / LOG_NAME),
        opened(find(path, asked), progress) as original,
    ):
        header = Path(work) / "outline.gguf"
        # what the base is taken as changes no size
        outline(conversion_of(original, about_model(original), original.adapter, "16bit"), header, progress)
        if fit_bytes is not None:
            return [fit.best_fit(header, fit_bytes, wanted.overrides, context, imatrix=wanted.imatrix is not None)]
        return fit.sizes(header, wanted.quants, wanted.overrides, context)


def verify_against(  # noqa: PLR0913, PLR0917 - one parameter an option
    path: Path, folder: Path, asked: Asked, onto: Onto, loras: Sequence[Lora], progress: Progress
) -> list[Point]:
    """Prove any GGUF against a run, an adapter or a model: `gladstone export verify FILE --against FOLDER`."""
    read_info(path)
    found = find(folder, asked)
    with (
        tempfile.TemporaryDirectory() as work,
        redirect_output(Path(work) / LOG_NAME),
        opened(found, progress) as original,
    ):
        check_shapes(read_plan(original.base.folder, original.adapters, onto))
        return verify_file(path, trained_of(original, onto), progress, loras)


def _finish(making: Making, proof: dict[str, list[Point]]) -> Export:
    original, bench = making.original, making.bench
    said = _proof_json(making, proof)
    write_json(bench.out / PROOF_NAME, said)
    write_text(bench.out / PAGE_NAME, proof_page(proof, said["against"], said["files"]))
    names = [record.path for piece in making.pieces() for record in piece.files]
    made = {name: bench.out / name for name in sorted(names, key=lambda name: name.endswith((MATRIX, LORA)))}
    page = [PROOF_NAME, PAGE_NAME, *_hand_over(making, proof, made)]
    files = bench.files()
    models = [name for name in files if not name.endswith(MATRIX)]
    manifest = Manifest(
        stage="export",
        files=(*files.values(), *(record_file(bench.out, bench.out / name) for name in page)),
        parents=dict(original.parents),
        config={"name": original.name, "base": making.about.base_name, "onto": making.onto, "origin": original.origin},
        versions=installed_versions(*VERSIONED),
        template_sha256=template_sha256(original.template_source),
        seed=original.training.seed,
        facts={
            "key": bench.key,
            "pieces": bench.as_json(),
            "tensor_types": {name: _tensor_types(bench.out / name) for name in models},
            "template_date": date.isoformat() if (date := original.training.template_date) else None,
            "training_warnings": original.warnings,
            "unknown": list(original.training.unknown),
        },
    )
    write_manifest(bench.out, manifest)
    bench.forget_state()
    return Export(bench.out, made, proof, tuple(dict.fromkeys(making.notes)))


def _hand_over(making: Making, proof: Mapping[str, Sequence[Point]], made: Mapping[str, Path]) -> list[str]:
    """Write Modelfile and model card for what was made; their names."""
    out, about = making.bench.out, making.about
    model, lora = next(iter(made.values())), next((path for name, path in made.items() if name.endswith(LORA)), None)
    no_ollama = write_modelfile(making.base, model, lora, about, common_system(making.base.rows))
    if no_ollama:
        making.notes.append(f"no Modelfile for Ollama: {no_ollama}.")
    card = Card(
        about=about,
        training=making.original.training,
        rows=making.original.rows,
        held_out=making.held_out,
        proof=proof,
        files={name: path for name, path in made.items() if not name.endswith(MATRIX)},
        onto=making.onto,
        ollama=no_ollama,
        vocabulary=making.growth.told() if making.growth else None,
    )
    write_card(card, out)
    return [CARD_NAME, *(name for name in MODELFILES if (out / name).is_file())]


def _tensor_types(path: Path) -> dict[str, int]:
    """How many tensors of each type a file, or a part of one, has."""
    return dict(Counter(tensor.type_name for tensor in read_header(path, is_model=False).tensors))


def _proof_json(making: Making, proof: dict[str, list[Point]]) -> dict[str, Any]:
    return {
        "passed": all(point.passed for points in proof.values() for point in points),
        "against": making.told_against(),
        "models": {name: [dataclasses.asdict(point) for point in points] for name, points in proof.items()},
        "held_out": {name: loss.as_json() for name, loss in making.held_out.items()},
        "files": {record.path: record.sha256 for piece in making.pieces() for record in piece.files},
        "versions": installed_versions(*VERSIONED),
    }
