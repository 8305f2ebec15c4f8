"""`gladstone export gguf`: from a run folder to proven GGUF files."""

import dataclasses
import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export import fit
from export.convert import Conversion, convert, outline
from export.converter import installed_version
from export.imatrix import (
    Calibration,
    calibration,
    check_fits,
    compute_imatrix,
    is_imatrix,
    read_imatrix,
    read_text,
)
from export.merge import Onto
from export.proof.file import proof_page, verify_file
from export.proof.point import Point
from export.proof.quantised import check_header, check_quantised
from export.proof.trained import Trained, of_folder, of_run
from export.quantise import quantise, told_fallbacks
from export.quants import PLAIN, Override, Quantisation, check_quants
from export.run import Run, open_run, read_run_manifest
from export.shards import read_folder
from export.split import split_gguf
from export.workbench import Made, Piece, Workbench
from gladstone.artifacts import (
    MANIFEST_NAME,
    Manifest,
    check_writable,
    is_finished,
    read_manifest,
    record_file,
    remove_partials,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
)
from gladstone.errors import ArtifactError, ConfigError, listed
from gladstone.formats import read_conversations
from gladstone.gguf import read_header, read_info
from gladstone.host import check_disk, installed_versions
from gladstone.lock import held
from gladstone.progress import Progress, step
from gladstone.quiet import output_to

VERSIONED = ("llama-cpp-python", "torch", "transformers", "peft")
PROOF_NAME, PAGE_NAME, LOG_NAME = "proof.json", "proof.txt", "export.log"
# bits a weight that a file never has more of: those of the largest type that its mixture falls back to
MOST_BITS = {"f32": 33, "f16": 17, "bf16": 17, "q8": 9, "q6": 8.6, "q5": 7, "mx": 7, "q4": 6.6, "iq4": 5.6}
MOST_BITS_BELOW = 5.0
MATRIX = "-imatrix.gguf"


@dataclass(frozen=True)
class Wanted:
    """What an export is to make, and how."""

    quants: tuple[str, ...]
    with_base: bool = False
    onto: Onto = "16bit"
    overrides: tuple[Override, ...] = ()
    imatrix: str | None = None  # 'train', or a file of rows, of text, or an importance matrix
    imatrix_chunks: int = 100
    split_bytes: int | None = None

    def checked(self) -> "Wanted":
        """With the quants in order. Raises ConfigError for what cannot be made."""
        return dataclasses.replace(
            self, quants=check_quants(self.quants, self.overrides, imatrix=self.imatrix is not None)
        )

    @property
    def carrier(self) -> str:
        """The type that the conversion writes and all others are made of: one that holds every plain type asked for."""
        plain = set(self.quants) & {*PLAIN}
        if plain <= {"f16"}:
            return "f16"
        return "bf16" if plain == {"bf16"} else "f32"


@dataclass(frozen=True)
class Export:
    """What came out: the files by name, the points of each proof, and what a user has to know of them."""

    folder: Path
    files: dict[str, Path]
    proof: dict[str, list[Point]]
    notes: tuple[str, ...]


def export_gguf(run_folder: Path, wanted: Wanted, out: Path | None, progress: Progress) -> Export:
    """Merge, convert, quantise and prove into `out` (default RUN/gguf); the manifest is written last.

    What an earlier, stopped call finished is used again. Raises ArtifactError if the proof fails: the files stay, for
    looking into, without a manifest.
    """
    wanted = wanted.checked()
    out = out or run_folder / "gguf"
    manifest = read_run_manifest(run_folder)
    check_writable(out)
    with held(out / LOG_NAME, "exporting"), output_to(out / LOG_NAME):
        remove_partials(out)
        run = open_run(run_folder, manifest, progress)
        making = _Making(run, wanted, Workbench(out, _key(run, wanted.onto), progress), progress)
        check_disk(out, making.needed_bytes(), "the GGUF files")
        making.read_calibration()
        proof = {run.name: making.model(run.name, run.folder / "adapter")}
        if wanted.with_base:
            proof[f"{run.name}-base"] = making.model(f"{run.name}-base", None)
        return _finish(making, proof)


def export_sizes(
    run_folder: Path, wanted: Wanted, context: int, fit_bytes: int | None, progress: Progress
) -> list[fit.Size]:
    """What each type would weigh, or the one that fits; no weight is read and nothing is kept.

    Raises ConfigError if none fits.
    """
    wanted = wanted.checked()
    run = open_run(run_folder, read_run_manifest(run_folder), progress)
    with tempfile.TemporaryDirectory() as work, output_to(Path(work) / LOG_NAME):
        path = Path(work) / "outline.gguf"
        outline(_conversion(run, run.name, run.folder / "adapter", wanted.onto), path, progress)
        if fit_bytes is not None:
            return [fit.best_fit(path, fit_bytes, wanted.overrides, context, imatrix=wanted.imatrix is not None)]
        return fit.sizes(path, wanted.quants, wanted.overrides, context)


def verify_against(path: Path, folder: Path, rows: Path | None, onto: Onto, progress: Progress) -> list[Point]:
    """Prove any GGUF against a run or a model's folder: `gladstone export verify FILE --against FOLDER`."""
    read_info(path)
    if not is_finished(folder) or read_manifest(folder).stage != "finetune":
        return verify_file(path, dataclasses.replace(of_folder(folder, rows), onto=onto), progress)
    if rows is not None:
        raise ConfigError("--data: a run brings its own held-out rows.")
    manifest = read_run_manifest(folder)
    with output_to(folder / LOG_NAME):
        run = open_run(folder, manifest, progress)
        return verify_file(path, of_run(run, folder / "adapter", onto), progress)


def _conversion(run: Run, name: str, adapter: Path | None, onto: Onto) -> Conversion:
    adapters = ((adapter, 1.0),) if adapter else ()
    return Conversion(name, run.base.folder, run.folder / "tokenizer", adapters, onto)


class _Making:
    """Makes the files of one export after another on its workbench."""

    def __init__(self, run: Run, wanted: Wanted, bench: Workbench, progress: Progress) -> None:
        self.run, self.wanted, self.bench, self.progress = run, wanted, bench, progress
        self.notes: list[str] = []
        self._calibration: Calibration | None = None

    def needed_bytes(self) -> int:
        """The carrier and each file that is not there yet, at the most that its type can weigh."""
        elements = sum(math.prod(stored.shape) for stored in read_folder(self.run.base.folder).values())
        quants = [quant for quant in self.wanted.quants if f"{self.run.name}-{quant}.gguf" not in self.bench.pieces]
        models = 2 if self.wanted.with_base else 1
        each = [_most_bits(quant) for quant in quants]
        bits = _most_bits(self.wanted.carrier) + models * sum(each)
        if self.wanted.split_bytes:  # a file and its parts are there together for a moment
            bits += max(each, default=0)
        return int(elements * bits / 8 * 1.02) + (16 << 20)

    def read_calibration(self) -> None:
        """Read the rows or the text of the importance matrix, before anything is made. Raises DataError."""
        source = self.wanted.imatrix
        if source is None or (source != "train" and is_imatrix(Path(source))):
            return
        path = self.run.folder / "data" / "train.jsonl" if source == "train" else Path(source)
        if path.suffix == ".txt":
            self._calibration = Calibration(path.name, read_text(path), self.wanted.imatrix_chunks)
            return
        rows = read_conversations(path, "prepared" if source == "train" else "auto")
        end = self._base.tokenizer.hf.eos_token or ""
        self._calibration = calibration(path.name, rows, self._base.template, end, self.wanted.imatrix_chunks)

    @cached_property
    def _base(self) -> Trained:
        """The untouched base, with the run's tokenizer, template and rows."""
        return of_run(self.run, None, self.wanted.onto)

    def model(self, name: str, adapter: Path | None) -> list[Point]:
        """The model's files in every quant, and the proof of them; the carrier goes unless it was asked for."""
        carrier = self.wanted.carrier
        first = f"{name}-{carrier}.gguf"
        base = self.bench.out / first

        def converted() -> Made:
            convert(_conversion(self.run, name, adapter, self.wanted.onto), base, self.progress, carrier)
            return [base], {}

        self.bench.piece(first, ["convert"], converted)
        trained = dataclasses.replace(self._base, adapter=adapter)
        points = verify_file(base, trained, self.progress)
        _refuse_failed(base, points)
        matrix = self._imatrix(name, base)
        others = [quant for quant in self.wanted.quants if quant != carrier]
        made = {quant: self._quant(base, f"{name}-{quant}.gguf", Quantisation(quant, self.wanted.overrides, matrix))
                for quant in others}  # fmt: skip
        points += [same for same, _ in made.values()]
        if made:
            with step(self.progress, f"Proving {', '.join(made)} against {carrier}"):
                files = {quant: path for quant, (_, path) in made.items()}
                costs = check_quantised(base, files, trained, self.progress)
            points += [dataclasses.replace(point, name=quant) for quant, point in costs.items()]
        _refuse_failed(base, points)
        limit = self.wanted.split_bytes
        if limit and carrier in self.wanted.quants:
            self.bench.piece(
                f"{first} in parts", ["split", limit], lambda: (split_gguf(base, limit, self.progress), {})
            )
        if limit or carrier not in self.wanted.quants:
            self.bench.drop(first)
        return points

    def _imatrix(self, name: str, base: Path) -> Path | None:
        """The importance matrix of a model, made once and kept beside its files, or the one that was given."""
        if self.wanted.imatrix is None:
            return None
        if self._calibration is None:
            given = Path(self.wanted.imatrix)
            check_fits(read_imatrix(given), read_header(base), given)
            return given
        text, path = self._calibration, self.bench.out / f"{name}{MATRIX}"

        def computed() -> Made:
            compute_imatrix(base, text, path, self.progress)
            return [path], {"text": text.name, "chunks": read_imatrix(path).chunks}

        self.bench.piece(path.name, ["imatrix", text.sha256], computed)
        return path

    def _quant(self, base: Path, name: str, how: Quantisation) -> tuple[Point, Path]:
        """A quantised file, in parts if it is to be, and the proof that its header is the carrier's."""
        target = self.bench.out / name
        matrix = sha256_file(how.imatrix) if how.imatrix and how.is_quantised else ""
        overrides = how.overrides if how.is_quantised else ()

        def quantised() -> Made:
            made = quantise(base, target, how, self.progress)
            same = check_header(target, base)
            facts: dict[str, Any] = {"same": dataclasses.asdict(same), "imatrix": matrix or None}
            facts["fallbacks"] = [dataclasses.asdict(each) for each in made.fallbacks]
            facts["told"] = told_fallbacks(how.quant, made.fallbacks) if made.fallbacks else None
            limit = self.wanted.split_bytes
            return (split_gguf(target, limit, self.progress) if limit else [target]), facts

        piece = self.bench.piece(
            name, ["quantise", self.wanted.carrier, overrides, matrix, self.wanted.split_bytes], quantised
        )
        if piece.facts["told"]:
            self.notes.append(piece.facts["told"])
        same = dataclasses.replace(Point(**piece.facts["same"]), name=f"{how.quant}: metadata")
        return same, self.bench.out / piece.files[0].path

    def pieces(self) -> Iterable[Piece]:
        """Those of this call."""
        return (self.bench.pieces[name] for name in self.bench.used)


def _key(run: Run, onto: Onto) -> str:
    """Changes with anything that the model is made from."""
    adapter = run.manifest.record("adapter/adapter_model.safetensors").sha256
    tokenizer = [record.sha256 for record in run.manifest.files if record.path.startswith("tokenizer/")]
    parts = [run.base.fingerprint, adapter, *tokenizer, installed_version(), run.name, onto]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _most_bits(quant: str) -> float:
    return next((bits for start, bits in MOST_BITS.items() if quant.startswith(start)), MOST_BITS_BELOW)


def _refuse_failed(path: Path, points: list[Point]) -> None:
    failed = [f"{point.name}: {point.detail}" for point in points if not point.passed]
    if failed:
        raise ArtifactError(listed(f"{path}: the proof failed, this file is not the model that was trained", failed))


def _finish(making: _Making, proof: dict[str, list[Point]]) -> Export:
    run, bench = making.run, making.bench
    said = _proof_json(making, proof)
    write_json(bench.out / PROOF_NAME, said)
    write_text(bench.out / PAGE_NAME, proof_page(proof, said["against"], said["files"]))
    files = bench.files()
    models = [name for name in files if not name.endswith(MATRIX)]
    manifest = Manifest(
        stage="export",
        files=(*files.values(), *(record_file(bench.out, bench.out / name) for name in (PROOF_NAME, PAGE_NAME))),
        parents={"run": sha256_file(run.folder / MANIFEST_NAME), "base": run.base.fingerprint},
        config={"name": run.name, "base": run.base.name, "onto": making.wanted.onto},
        versions=installed_versions(*VERSIONED),
        template_sha256=run.manifest.template_sha256,
        seed=run.manifest.seed,
        facts={
            "key": bench.key,
            "pieces": bench.as_json(),
            "tensor_types": {name: _tensor_types(bench.out / name) for name in models},
        },
    )
    write_manifest(bench.out, manifest)
    bench.forget_state()
    made = sorted(
        (record.path for piece in making.pieces() for record in piece.files), key=lambda name: name.endswith(MATRIX)
    )
    return Export(bench.out, {name: bench.out / name for name in made}, proof, tuple(dict.fromkeys(making.notes)))


def _tensor_types(path: Path) -> dict[str, int]:
    """How many tensors of each type a file, or a part of one, has."""
    return dict(Counter(tensor.type_name for tensor in read_header(path, is_model=False).tensors))


def _proof_json(making: _Making, proof: dict[str, list[Point]]) -> dict[str, Any]:
    return {
        "passed": all(point.passed for points in proof.values() for point in points),
        "against": {"run": making.run.name, "base": making.run.base.name},
        "models": {name: [dataclasses.asdict(point) for point in points] for name, points in proof.items()},
        "files": {record.path: record.sha256 for piece in making.pieces() for record in piece.files},
        "versions": installed_versions(*VERSIONED),
    }
