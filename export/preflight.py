"""Cheap checks before anything is merged: calibration text, memory of the proof, outline (a GGUF without weights)."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.convert.convert import Conversion, outline
from export.merge.plan import Onto
from export.original.model import Original
from export.proof.duration import foreseen_s
from export.proof.reference import place_reference
from export.proof.trained import trained_of
from export.quantise.imatrix import (
    CHUNK_TOKENS,
    Calibration,
    Imatrix,
    calibration,
    check_fits,
    is_imatrix,
    read_imatrix,
    read_text,
)
from export.quantise.quantise import check_overrides, predicted_bytes
from export.quantise.split import check_split
from export.quantise.types import Override, Quantisation
from export.torch_model.placement import Memory
from export.torch_model.size import model_size
from gladstone.commands.progress import Progress, step
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.formats import read_conversations
from gladstone.gguf.header import read_header
from gladstone.report.durations import rough_duration

TRIED_CHARACTERS = 20_000  # tokenised at a time, until there are enough tokens


@dataclass(frozen=True)
class PreflightPlan:
    """What an export makes of a model. `matrix` is the file of a given importance matrix."""

    quants: tuple[str, ...]
    overrides: tuple[Override, ...] = ()
    matrix: Path | None = None
    split_bytes: int | None = None

    @property
    def needs_outline(self) -> bool:
        """True if a check needs the names and sizes of the model's tensors."""
        return bool(self.overrides or self.matrix or self.split_bytes is not None)


def given_matrix(source: str | None) -> Path | None:
    """The file of `--imatrix` if it holds an importance matrix, None if it holds rows or text. Raises ArtifactError."""
    return Path(source) if source not in (None, "train") and is_imatrix(Path(str(source))) else None


def plan_proof(original: Original, onto: Onto, files: int, progress: Progress, memory: Memory | None = None) -> None:
    """Say where the proof will compute, the memory it needs and its time, with `files` quantised files.

    `memory` is what is free, this machine's by default. Raises UnsupportedError if it is too little.
    """
    with step(progress, "Planning the proof") as running:
        trained = trained_of(original, onto)
        placement = place_reference(trained, memory)
        size = model_size(trained.base, trained.adapter)
        about_s = foreseen_s(trained, files, size.parameters, placement)
        told = "" if about_s is None else f", about {rough_duration(about_s)}"
        running.update(None, f"in torch {placement}{told}")


def check_plan(conversion: Conversion, plan: PreflightPlan, progress: Progress) -> None:
    """Compare the plan with the model's outline; reads no weight.

    Raises ConfigError for an impossible split or `--tensor-type`, ArtifactError for a damaged importance matrix,
    UnsupportedError for the importance matrix of another model.
    """
    matrix = read_imatrix(plan.matrix) if plan.matrix else None  # first what needs no outline
    if plan.split_bytes is not None and plan.split_bytes < 1:
        raise ConfigError(f"--split {plan.split_bytes}: expected a size such as 2GB.")
    if not plan.needs_outline:
        return
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "outline.gguf"
        outline(conversion, path, progress)
        check_outline(path, plan, matrix)


def check_outline(path: Path, plan: PreflightPlan, matrix: Imatrix | None) -> None:
    """The part of `check_plan` that reads the outline, a GGUF that may lack weights. Raises as `check_plan` does."""
    header = read_header(path)
    if matrix is not None and plan.matrix is not None:
        check_fits(matrix, header, plan.matrix)
    check_overrides(plan.overrides, [tensor.name for tensor in header.tensors])
    if plan.split_bytes is not None:
        for quant in plan.quants:
            check_split(quant, header, predicted_bytes(path, Quantisation(quant, plan.overrides)), plan.split_bytes)


def read_calibration(original: Original, source: str | None, chunks: int) -> Calibration | None:
    """The rows or the text of `--imatrix`; None without the option, or if it names an importance matrix.

    Raises DataError for rows or text that are unreadable or too short, ConfigError if the training rows are not known,
    UnsupportedError for encoder-decoder models.
    """
    if source is None or given_matrix(source) is not None:
        return None
    path = _training_rows(original) if source == "train" else Path(source)
    trained = trained_of(original, "16bit")
    if trained.seq2seq:
        raise UnsupportedError("--imatrix: importance matrices of encoder-decoder models are not supported.")
    if path.suffix == ".txt":
        text = Calibration(path.name, read_text(path), chunks)
    else:
        rows = read_conversations(path, "prepared" if source == "train" else "auto")
        text = calibration(path.name, rows, trained.template, trained.tokenizer.hf.eos_token or "", chunks)
    check_length(path.name, [text.text], trained.tokenizer.encode)
    return text


def _training_rows(original: Original) -> Path:
    if original.calibration is None:
        raise ConfigError(
            "--imatrix train: the training rows of this model are not known. Give rows or text: --imatrix FILE."
        )
    return original.calibration


def check_length(name: str, texts: Iterable[str], encode: Callable[[str], Sequence[int]]) -> None:
    """Raises DataError for texts too short for an importance matrix. Stops reading once there are enough tokens."""
    count = 0
    for text in texts:
        for begin in range(0, len(text), TRIED_CHARACTERS):
            count += len(encode(text[begin : begin + TRIED_CHARACTERS]))
            if count >= CHUNK_TOKENS:
                return
    raise DataError(
        f"--imatrix {name}: {count:,} tokens, an importance matrix needs at least {CHUNK_TOKENS:,}. Give more rows or "
        "a longer text."
    )
