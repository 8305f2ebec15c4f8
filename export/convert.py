"""Base and adapters to a GGUF of 16 or 32 bit, from which all others are quantised."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.children import run_child
from export.converter import converter_folder
from export.merge import Onto
from gladstone.artifacts import whole_file
from gladstone.progress import Progress, step
from gladstone.tokenizer import tokenizer_files

MODEL_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Conversion:
    """What to convert: the base's weights, the trained tokenizer and template, the adapters with their weights."""

    name: str
    base: Path
    tokenizer: Path
    adapters: tuple[tuple[Path, float], ...] = ()
    onto: Onto = "16bit"


def convert(conversion: Conversion, out: Path, progress: Progress, file_type: str = "f16") -> None:
    """Write the GGUF whole. Raises ToolError with the converter's last lines if it fails."""
    converter = converter_folder(progress)
    what = "Merging and converting" if conversion.adapters else "Converting the base"
    with (
        step(progress, f"{what} to {file_type.upper()}"),
        tempfile.TemporaryDirectory() as work,
        whole_file(out) as partial,
    ):
        model = Path(work) / conversion.name
        _stage(conversion, model)
        job = {
            "model": str(model),
            "base": str(conversion.base.resolve()),
            "adapters": [(str(path.resolve()), weight) for path, weight in conversion.adapters],
            "onto": conversion.onto,
            "type": file_type,
            "out": str(partial.resolve()),
            "name": conversion.name,
        }
        run_child("export.convert_child", job, "llama.cpp's converter", (converter, converter / "gguf-py"))


def _stage(conversion: Conversion, model: Path) -> None:
    """A folder of links: shape of the base, tokenizer and template as trained. The weights come from the merge."""
    model.mkdir()
    for name in MODEL_FILES:
        if (conversion.base / name).is_file():
            (model / name).symlink_to((conversion.base / name).resolve())
    for path in tokenizer_files(conversion.tokenizer):
        (model / path.name).symlink_to(path.resolve())
