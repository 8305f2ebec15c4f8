"""Converts a base with its adapters to the intermediate GGUF (F16, BF16 or F32)."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.convert.llamacpp_converter import converter_folder
from export.convert.pretokenizer import choose
from export.convert.vocabulary_fixes import read_tokenizer
from export.merge.plan import Onto
from gladstone import file_names
from gladstone.artifacts import atomic_file, write_json
from gladstone.commands.progress import Progress, step
from gladstone.errors import UnsupportedError
from gladstone.models.tokenizer import tokenizer_files
from gladstone.process.child import ChildOptions, run_child

UNKNOWN_TOKENIZER = "the converter has never seen this tokenizer"


@dataclass(frozen=True)
class Conversion:
    """What to convert: base, tokenizer folder with the template, adapters with their weights, metadata."""

    name: str
    base: Path
    tokenizer: Path
    adapters: tuple[tuple[Path, float], ...] = ()
    onto: Onto = "16bit"
    about: Mapping[str, Any] = field(default_factory=dict)  # fields of the GGUF's general metadata


def convert(conversion: Conversion, out: Path, progress: Progress, file_type: str = "f16") -> None:
    """Write the GGUF `out` of type f16, bf16 or f32, whole or not at all.

    Raises UnsupportedError for an adapter that cannot be merged or an architecture unknown to the converter, ToolError
    if the converter fails.
    """
    what = "Merging and converting" if conversion.adapters else "Converting"
    _convert(conversion, out, progress, f"{what} to {file_type.upper()}", {"type": file_type, "outline": False})


def outline(conversion: Conversion, out: Path, progress: Progress, file_type: str = "f16") -> None:
    """Write what `convert` would write without the weights: a sparse file, from which sizes can be predicted.

    Raises as `convert` does.
    """
    _convert(conversion, out, progress, "Measuring the model", {"type": file_type, "outline": True})


def _convert(conversion: Conversion, out: Path, progress: Progress, what: str, how: dict[str, object]) -> None:
    try:
        run_converter(conversion, out, progress, what, how | {"pre": None})
    except UnsupportedError as error:
        if str(error) != UNKNOWN_TOKENIZER:
            raise
        pre = _find_pretokenizer(conversion, progress)
        run_converter(conversion, out, progress, what, how | {"pre": pre})


def _find_pretokenizer(conversion: Conversion, progress: Progress) -> str:
    with tempfile.TemporaryDirectory() as work:
        header = Path(work) / "outline.gguf"
        how = {"type": "f16", "outline": True, "pre": "default"}
        run_converter(conversion, header, progress, "Reading the vocabulary", how)
        return choose(header, conversion.tokenizer, progress)


def run_converter(  # noqa: PLR0913, PLR0917 - what is converted, whereto, and how
    conversion: Conversion,
    out: Path,
    progress: Progress,
    what: str,
    how: Mapping[str, object],
    module: str = "export.convert.convert_child",
) -> None:
    """Write `out` in a child process with the converter's packages; `how` holds the job's own settings."""
    folder = converter_folder(progress)
    with step(progress, what), atomic_file(out) as partial, tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        _stage(conversion, model)
        job = {
            **how,
            "model": str(model),
            "base": str(conversion.base),
            "adapters": [(str(path), weight) for path, weight in conversion.adapters],
            "onto": conversion.onto,
            "out": str(partial),
            "name": conversion.name,
            "about": dict(conversion.about),
        }
        options = ChildOptions(python_path=[folder / "gguf-py", folder])
        run_child(module, job, "llama.cpp's converter", options, progress)


def _stage(conversion: Conversion, model: Path) -> None:
    """Make the folder the converter reads: links to the base's config and the trained tokenizer, without weights."""
    model.mkdir()
    for name in (file_names.CONFIG, file_names.GENERATION_CONFIG):
        if (conversion.base / name).is_file():
            (model / name).symlink_to((conversion.base / name).resolve())
    for path in tokenizer_files(conversion.tokenizer):
        (model / path.name).symlink_to(path.resolve())
    # transformers 5 does not save these; added tokens are in tokenizer.json
    for name in file_names.SENTENCEPIECE:
        if (conversion.base / name).is_file() and not (model / name).exists() and _same_kind(conversion):
            (model / name).symlink_to((conversion.base / name).resolve())
    _name_added_tokens(model)


def _same_kind(conversion: Conversion) -> bool:
    """True if the tokenizer is the base's, except for added tokens."""
    ours, theirs = (read_tokenizer(folder) for folder in (conversion.tokenizer, conversion.base))
    return bool(ours and theirs and ours["model"]["vocab"] == theirs["model"]["vocab"])


def _name_added_tokens(model: Path) -> None:
    """Add added_tokens_decoder to tokenizer_config.json: the converter reads it, transformers 5 does not write it."""
    config_path, path = model / file_names.TOKENIZER_CONFIG, model / file_names.TOKENIZER
    if not config_path.is_file() or not path.is_file():
        return
    config = json.loads(config_path.read_text(encoding="utf-8"))
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    if config.get("added_tokens_decoder") or not added:
        return
    config["added_tokens_decoder"] = {
        str(each["id"]): {key: value for key, value in each.items() if key != "id"} for each in added
    }
    config_path.unlink()  # a link to the source's file
    write_json(config_path, config)
