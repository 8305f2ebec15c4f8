"""What cannot be made is refused before anything is merged, by what is cheap to know: texts, the model's outline."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.convert.convert import Conversion, outline
from export.original.model import Original
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
from gladstone.commands.progress import Progress
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.formats import read_conversations
from gladstone.gguf.header import read_header

TRIED_CHARACTERS = 20_000  # of a text are tokenised at once, until there are enough


@dataclass(frozen=True)
class PreflightPlan:
    """What is to be made of a model. `matrix` is the file of an importance matrix that was given, if one was."""

    quants: tuple[str, ...]
    overrides: tuple[Override, ...] = ()
    matrix: Path | None = None
    split_bytes: int | None = None

    @property
    def needs_outline(self) -> bool:
        """Whether anything depends on the names and sizes of the model's tensors."""
        return bool(self.overrides or self.matrix or self.split_bytes is not None)


def given_matrix(source: str | None) -> Path | None:
    """The file of `--imatrix`, if it is an importance matrix and no rows or text. Raises ArtifactError."""
    return Path(source) if source not in (None, "train") and is_imatrix(Path(str(source))) else None


def check_plan(conversion: Conversion, plan: PreflightPlan, progress: Progress) -> None:
    """Compare the plan with the model's outline; no weight is read.

    Raises ConfigError for a split or a `--tensor-type` that cannot be, ArtifactError for a file that is no sound
    importance matrix, UnsupportedError for one of another model.
    """
    matrix = read_imatrix(plan.matrix) if plan.matrix else None  # what needs no outline comes first
    if plan.split_bytes is not None and plan.split_bytes < 1:
        raise ConfigError(f"--split {plan.split_bytes}: expected a size, as 2GB.")
    if not plan.needs_outline:
        return
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "outline.gguf"
        outline(conversion, path, progress)
        check_outline(path, plan, matrix)


def check_outline(path: Path, plan: PreflightPlan, matrix: Imatrix | None) -> None:
    """The part of `check_plan` that looks at the outline, a GGUF that may have no weights. Raises as it does."""
    header = read_header(path)
    if matrix is not None and plan.matrix is not None:
        check_fits(matrix, header, plan.matrix)
    check_overrides(plan.overrides, [tensor.name for tensor in header.tensors])
    if plan.split_bytes is not None:
        for quant in plan.quants:
            check_split(quant, header, predicted_bytes(path, Quantisation(quant, plan.overrides)), plan.split_bytes)


def read_calibration(original: Original, source: str | None, chunks: int) -> Calibration | None:
    """The rows or the text of `--imatrix`; None where none is wanted or an importance matrix was given.

    Raises DataError for rows and texts that cannot be used or are too short, ConfigError where the training rows are
    not known, UnsupportedError for a model that can have none.
    """
    if source is None or given_matrix(source) is not None:
        return None
    path = _training_rows(original) if source == "train" else Path(source)
    trained = trained_of(original, "16bit")
    if trained.seq2seq:
        raise UnsupportedError("--imatrix: importance matrices of models with encoder and decoder are not computed.")
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
            "--imatrix train: the rows that the model was trained on are not known. Give rows or text of yours: "
            "--imatrix FILE."
        )
    return original.calibration


def check_length(name: str, texts: Iterable[str], encode: Callable[[str], Sequence[int]]) -> None:
    """Raises DataError for texts that are too short for an importance matrix; reads no more than it needs."""
    count = 0
    for text in texts:
        for begin in range(0, len(text), TRIED_CHARACTERS):
            count += len(encode(text[begin : begin + TRIED_CHARACTERS]))
            if count >= CHUNK_TOKENS:
                return
    raise DataError(
        f"--imatrix {name}: {count:,} tokens, an importance matrix needs {CHUNK_TOKENS:,} at least. Give more rows or "
        "a longer text."
    )
