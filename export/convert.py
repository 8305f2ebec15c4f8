"""Base and adapter to an F16 GGUF."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.children import run_child
from export.converter import converter_folder
from gladstone.artifacts import whole_file
from gladstone.progress import Progress, step
from gladstone.tokenizer import TOKENIZER_FILES

MODEL_FILES = ("*.safetensors", "*.index.json", "config.json", "generation_config.json")


@dataclass(frozen=True)
class Conversion:
    """What to convert: the base's weights, the trained tokenizer and template, the adapter or None."""

    name: str
    base: Path
    tokenizer: Path
    adapter: Path | None


def convert_to_f16(conversion: Conversion, out: Path, progress: Progress) -> None:
    """Write the F16 GGUF whole. Raises ToolError with the converter's last lines if it fails."""
    converter = converter_folder(progress)
    what = "Merging and converting" if conversion.adapter else "Converting the base"
    with step(progress, f"{what} to F16"), tempfile.TemporaryDirectory() as work, whole_file(out) as partial:
        model = Path(work) / conversion.name
        _stage(conversion, model)
        job = {
            "model": str(model),
            "adapter": str(conversion.adapter.resolve()) if conversion.adapter else None,
            "out": str(partial.resolve()),
            "name": conversion.name,
        }
        run_child("export.convert_child", job, "llama.cpp's converter", (converter, converter / "gguf-py"))


def _stage(conversion: Conversion, model: Path) -> None:
    """A folder of links: weights and shape of the base, tokenizer and template as trained."""
    model.mkdir()
    for pattern in MODEL_FILES:
        for path in conversion.base.glob(pattern):
            (model / path.name).symlink_to(path.resolve())
    for name in TOKENIZER_FILES:
        if (conversion.tokenizer / name).is_file():
            (model / name).symlink_to((conversion.tokenizer / name).resolve())
