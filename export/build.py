"""Build the files of an export, artifact by artifact, and prove each before the next is made from it."""

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from export.artifact_cache import Artifact, ArtifactCache, Made
from export.convert.convert import Conversion, convert
from export.convert.llamacpp_converter import installed_version
from export.convert.lora_gguf import LORA, pairs_of, write_lora
from export.merge.plan import Onto, check_shapes, read_plan
from export.merge.vocabulary_growth import VocabularyGrowth, find_vocabulary_growth
from export.original.model import Original
from export.preflight import PreflightPlan, given_matrix
from export.proof.check import Check
from export.proof.file import verify_file
from export.proof.heldout import HeldOut, describe_mean, held_out_loss
from export.proof.quantised import check_header, check_quantised
from export.proof.reading_results import ReadingResults
from export.proof.tokens import end_of_turn
from export.proof.trained import Trained, trained_of
from export.publish.metadata import About, about_base, about_model
from export.quantise.imatrix import (
    Calibration,
    check_fits,
    compute_imatrix,
    read_imatrix,
)
from export.quantise.quantise import describe_fallbacks, quantise
from export.quantise.split import split_gguf
from export.quantise.types import PLAIN, Override, Quantisation, check_quants
from export.tensors.weights import read_folder
from gladstone.artifacts import sha256_file
from gladstone.commands.progress import Progress, step
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ConfigError, UnsupportedError, listed
from gladstone.gguf.header import read_header
from gladstone.llamacpp.lora import Lora
from gladstone.strict_json import json_text

# upper bound of bits per weight by type: those of the largest type that its mixture falls back to
MOST_BITS = {"f32": 33, "f16": 17, "bf16": 17, "q8": 9, "q6": 8.6, "q5": 7, "mx": 7, "q4": 6.6, "iq4": 5.6}
MOST_BITS_BELOW = 5.0
ONTO: tuple[Onto, ...] = ("16bit", "nf4")
MATRIX = "-imatrix.gguf"


@dataclass(frozen=True)
class ExportOptions:
    """Which files an export makes, and how."""

    quants: tuple[str, ...]
    with_base: bool = False
    onto: Onto | Literal["best"] = "16bit"  # best: the one that predicts held-out rows better
    overrides: tuple[Override, ...] = ()
    imatrix: str | None = None  # 'train', or a file of rows or text, or an importance matrix
    imatrix_chunks: int = 100
    split_bytes: int | None = None
    lora: bool = False  # the adapter as its own file, and the base in every type
    author: str | None = None
    license: str | None = None  # of the model; None: the base's
    languages: tuple[str, ...] = ()
    accepted: bool = False  # accept a run whose training went wrong

    def checked(self) -> "ExportOptions":
        """These options with normalised quants. Raises ConfigError for types that cannot be made."""
        return dataclasses.replace(
            self, quants=check_quants(self.quants, self.overrides, imatrix=self.imatrix is not None)
        )

    @property
    def plan(self) -> PreflightPlan:
        """The part that depends on the model's tensors. Raises ArtifactError for an unreadable `--imatrix` file."""
        return PreflightPlan(self.quants, self.overrides, given_matrix(self.imatrix), self.split_bytes)

    @property
    def intermediate(self) -> str:
        """Type of the intermediate GGUF (f16, bf16 or f32): the smallest that holds every requested plain type."""
        plain = set(self.quants) & {*PLAIN}
        if plain <= {"f16"}:
            return "f16"
        return "bf16" if plain == {"bf16"} else "f32"


def check_options(original: Original, options: ExportOptions) -> None:
    """Raises ConfigError for options that need an adapter, when the source is a whole model."""
    if original.adapter:
        return
    if options.lora:
        raise ConfigError(f"{original.home}: a model folder without an adapter: use `gladstone export gguf`.")
    if options.with_base:
        raise ConfigError(
            f"--with-base: {original.home} is a model folder whose base is not known: export the base separately."
        )
    if options.onto != "16bit":
        raise ConfigError(
            f"--base-precision {options.onto}: {original.home} is a model folder; there is no adapter to merge."
        )


def check_vocabulary(original: Original, options: ExportOptions) -> VocabularyGrowth | None:
    """How the vocabulary grew beyond the base's; None if it did not.

    Raises UnsupportedError for an adapter of another base, for tokens without a row in the model, and for an adapter
    that cannot be a file of its own. Raises ConfigError if `--with-base` meets a grown vocabulary.
    """
    plan = read_plan(original.base.folder, original.adapters)
    check_shapes(plan)
    if options.lora:
        pairs_of(plan)
    growth = find_vocabulary_growth(original.base.folder, original.tokenizer, plan)
    if growth and growth.after > growth.before and options.with_base:
        raise ConfigError(
            f"--with-base: {growth.describe()[:-1]}. The base has no rows for the added tokens: export it "
            f"separately ({command_line('gladstone', 'export', 'gguf', original.base.folder)})."
        )
    return growth


def check_end(original: Original, trained: Trained) -> None:
    """Raises UnsupportedError if the chat template ends an answer without a special token."""
    if end_of_turn(trained) is None:
        advice = (
            "Train again with a template that does: base.chat_template=FILE."
            if original.origin == "run"
            else "Give the template used in training: --chat-template FILE|NAME."
        )
        raise UnsupportedError(
            f"{original.home}: its chat template ends an answer without a special token: nothing stops the generation. "
            f"{advice}"
        )


class ExportBuilder:
    """Builds the files of one export and collects checks, held-out losses and notes."""

    def __init__(
        self, original: Original, options: ExportOptions, onto: Onto, cache: ArtifactCache, progress: Progress
    ) -> None:
        self.original, self.options, self.onto, self.cache, self.progress = original, options, onto, cache, progress
        self.about = about_model(original, options.author, options.license, options.languages)
        self.held_out: dict[str, HeldOut] = {}  # by the model's name
        self.notes: list[str] = []
        self.growth: VocabularyGrowth | None = None  # of the vocabulary
        self.calibration: Calibration | None = None
        self._vocabularies: dict[str, list[Check]] = {}  # that were proven

    def needed_bytes(self) -> int:
        """Disk space for the intermediate and every missing file, at the upper bound of their types."""
        elements = sum(math.prod(stored.shape) for stored in read_folder(self.original.base.folder).values())
        quants = [
            quant for quant in self.options.quants if f"{self.original.name}-{quant}.gguf" not in self.cache.artifacts
        ]
        models = 2 if self.options.with_base else 1
        each = [_most_bits(quant) for quant in quants]
        bits = _most_bits(self.options.intermediate) + models * sum(each)
        if self.options.split_bytes:  # a file and its parts exist together for a moment
            bits += max(each, default=0)
        return int(elements * bits / 8 * 1.02) + (16 << 20)

    @cached_property
    def base(self) -> Trained:
        """The untouched base with the source's tokenizer, template and rows."""
        return dataclasses.replace(trained_of(self.original, self.onto), adapter=None)

    def describe_source(self) -> dict[str, str]:
        """What the files are compared with, for the page of the proof."""
        original = self.original
        facts = {
            original.origin.replace("folder", "model"): original.name,
            "base": self.about.base_name,
            "rows": original.rows.words.page,
        }
        facts |= {"vocabulary": self.growth.describe()} if self.growth else {}
        if original.origin != "run":
            facts |= {"tokenizer": original.found_in.tokenizer, "template": original.found_in.template}
            facts |= {"unknown": ", ".join(original.training.unknown), "unchecked": "; ".join(original.unchecked())}
        return {name: value for name, value in facts.items() if value}

    def build(self) -> dict[str, list[Check]]:
        """Make every requested file; returns the checks by model name."""
        name = self.original.name
        if self.growth:
            self.notes.append(self.growth.describe())
        if note := self.original.rows.words.note:
            self.notes.append(note)
        if self.options.lora:
            return self.lora(name)
        proof = {name: self.model(name, self.about, self.original.adapter)}
        if self.options.with_base:
            proof[f"{name}-base"] = self.model(f"{name}-base", about_base(self.original), None)
        return proof

    def model(self, name: str, about: About, adapter: Path | None) -> list[Check]:
        """Build one model in every type and prove it; the intermediate is removed unless it was requested."""
        base = self._intermediate(name, about, adapter)
        trained = dataclasses.replace(self.base, adapter=adapter)
        others = len({*self.options.quants} - {self.options.intermediate})
        results = ReadingResults(keeps=others > 0, vocabularies=self._vocabularies)
        checks = verify_file(base, trained, self.progress, files=others, results=results)
        _refuse_failed(base, checks)
        checks += self._quantised(name, base, trained, results)
        self._put_away(base)
        return checks

    def lora(self, name: str) -> dict[str, list[Check]]:
        """Build the adapter as its own file, proven on top of the base, and the base in every type."""
        adapter = self.original.adapter
        base = self._intermediate(f"{name}-base", about_base(self.original), None)
        path = self.cache.out / f"{name}{LORA}"
        conversion = conversion_of(self.original, self.about, adapter, self.onto)

        def written() -> Made:
            write_lora(conversion, path, self.original.template_source, self.progress)
            return [path], {}

        self.cache.artifact(path.name, ["lora", _said(self.about)], written)
        trained = dataclasses.replace(self.base, adapter=adapter)
        results = ReadingResults()
        checks = verify_file(base, trained, self.progress, loras=[Lora(path)], results=results)
        _refuse_failed(path, checks)
        if self.base.held_out and results.held_out:
            self.held_out[f"{name}-lora"] = results.held_out
        costs = self._quantised(f"{name}-base", base, self.base, ReadingResults())
        self._put_away(base)
        return {f"{name}-lora": checks, f"{name}-base": costs}

    def _intermediate(self, name: str, about: About, adapter: Path | None) -> Path:
        """Convert a model, merged with its adapter if it has one, to the intermediate GGUF."""
        intermediate = self.options.intermediate
        path = self.cache.out / f"{name}-{intermediate}.gguf"

        def converted() -> Made:
            convert(conversion_of(self.original, about, adapter, self.onto), path, self.progress, intermediate)
            return [path], {}

        self.cache.artifact(path.name, ["convert", _said(about)], converted)
        return path

    def _quantised(self, name: str, base: Path, trained: Trained, results: ReadingResults) -> list[Check]:
        """Quantise the intermediate to the other types and check each against it on held-out rows.

        `results` holds what the proof of the intermediate already computed.
        """
        intermediate = self.options.intermediate
        matrix = self._imatrix(name, base)
        others = [quant for quant in self.options.quants if quant != intermediate]
        made = {quant: self._quant(base, f"{name}-{quant}.gguf", Quantisation(quant, self.options.overrides, matrix))
                for quant in others}  # fmt: skip
        checks = [same for same, _ in made.values()]
        files = {quant: path for quant, (_, path) in made.items()}
        what = f"Proving {', '.join(made)} against {intermediate}" if made else f"Measuring {base.name}"
        with step(self.progress, f"{what} on {trained.which.words.rows}"):
            costs, losses = check_quantised(base, files, trained, self.progress, results)
        if trained.held_out:
            self.held_out[name] = losses
        checks += [dataclasses.replace(check, name=quant) for quant, check in costs.items()]
        _refuse_failed(base, checks)
        return checks

    def _put_away(self, base: Path) -> None:
        """Remove the intermediate unless it was requested; split it if the other files are split."""
        limit, asked = self.options.split_bytes, self.options.intermediate in self.options.quants
        if limit and asked:
            self.cache.artifact(
                f"{base.name} in parts", ["split", limit], lambda: (split_gguf(base, limit, self.progress), {})
            )
        if limit or not asked:
            self.cache.drop(base.name)

    def _imatrix(self, name: str, base: Path) -> Path | None:
        """The importance matrix: the given file, or one computed once and kept beside the model; None without one."""
        if self.options.imatrix is None:
            return None
        if self.calibration is None:
            given = Path(self.options.imatrix)
            check_fits(read_imatrix(given), read_header(base), given)
            return given
        text, path = self.calibration, self.cache.out / f"{name}{MATRIX}"

        def computed() -> Made:
            compute_imatrix(base, text, path, self.progress)
            return [path], {"text": text.name, "chunks": read_imatrix(path).chunks}

        self.cache.artifact(path.name, ["imatrix", text.sha256], computed)
        return path

    def _quant(self, base: Path, name: str, how: Quantisation) -> tuple[Check, Path]:
        """A quantised file, split if requested, and the check that its header equals the intermediate's."""
        target = self.cache.out / name
        matrix = sha256_file(how.imatrix) if how.imatrix and how.is_quantised else ""
        overrides = how.overrides if how.is_quantised else ()

        def quantised() -> Made:
            made = quantise(base, target, how, self.progress)
            same = check_header(target, base)
            facts: dict[str, Any] = {"same": dataclasses.asdict(same), "imatrix": matrix or None}
            facts["fallbacks"] = [dataclasses.asdict(each) for each in made.fallbacks]
            facts["note"] = describe_fallbacks(how.quant, made.fallbacks) if made.fallbacks else None
            limit = self.options.split_bytes
            return (split_gguf(target, limit, self.progress) if limit else [target]), facts

        artifact = self.cache.artifact(
            name,
            [
                "quantise",
                self.cache.artifacts[base.name].made_from,
                base.name,
                overrides,
                matrix,
                self.options.split_bytes,
            ],
            quantised,
        )
        if note := artifact.facts.get("note", artifact.facts.get("told")):  # version 0.1.0 wrote told
            self.notes.append(note)
        same = dataclasses.replace(Check(**artifact.facts["same"]), name=f"{how.quant}: metadata")
        return same, self.cache.out / artifact.files[0].path

    def artifacts(self) -> Iterable[Artifact]:
        """The artifacts of this call."""
        return (self.cache.artifacts[name] for name in self.cache.used)


def model_key(original: Original, onto: Onto) -> str:
    """A hash over everything that the model is made from."""
    parts = [original.base.fingerprint, *original.key, installed_version(), original.name, onto]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _most_bits(quant: str) -> float:
    return next((bits for start, bits in MOST_BITS.items() if quant.startswith(start)), MOST_BITS_BELOW)


def _refuse_failed(path: Path, checks: list[Check]) -> None:
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise ArtifactError(listed(f"{path}: the proof failed: this file is not the trained model", failed))


def conversion_of(original: Original, about: About, adapter: Path | None, onto: Onto) -> Conversion:
    """The conversion that makes a model, with its adapter merged if it has one."""
    adapters = ((adapter, 1.0),) if adapter else ()
    return Conversion(about.name, original.base.folder, original.tokenizer, adapters, onto, about.as_metadata())


def choose_onto(original: Original, options: ExportOptions, out: Path, progress: Progress) -> tuple[Onto, list[str]]:
    """The base precision to merge onto, and notes about the choice.

    `best` measures both on held-out rows; without such rows it is 16bit.
    """
    if options.onto != "best":
        return options.onto, []
    about = about_model(original)
    trained = trained_of(original)
    if not trained.held_out:
        return "16bit", ["merged onto 16bit: without held-out rows, the two bases were not compared."]
    losses: dict[Onto, HeldOut] = {}
    with tempfile.TemporaryDirectory(prefix=".onto.", suffix=".partial", dir=out) as work:
        for onto in ONTO:
            path = Path(work) / f"{onto}.gguf"
            convert(conversion_of(original, about, original.adapter, onto), path, progress)
            with step(progress, f"Measuring the merge onto {onto} on held-out rows"):
                losses[onto] = held_out_loss(path, trained, progress)
            path.unlink()
    chosen, note = better_base(losses["16bit"], losses["nf4"])
    return chosen, [note]


def better_base(plain: HeldOut, nf4: HeldOut) -> tuple[Onto, str]:
    """The base precision with the lower held-out loss, and a note with both losses and their difference."""
    difference = plain.less(nf4)
    chosen: Onto = "nf4" if difference[0] > 0 else "16bit"
    means = [f"{loss.as_json()['nats_per_token']:.4f}" for loss in (plain, nf4)]
    noise = "" if difference[1] > 0 or difference[2] < 0 else ", a difference within the noise"
    return chosen, (
        f"merged onto {chosen}: held-out loss 16bit {means[0]}, nf4 {means[1]} nats a token, 16bit less nf4 "
        f"{describe_mean(difference, digits=4)}{noise}."
    )


def _said(about: About) -> str:
    return json_text(about.as_metadata(), sort_keys=True, ensure_ascii=True)
