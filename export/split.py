"""A GGUF in parts, for disks and hosts that take no large files; llama.cpp loads the first and finds the rest."""

import tempfile
from pathlib import Path

from export.children import run_child
from export.converter import converter_folder
from gladstone.artifacts import sync
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf import part_name, read_header
from gladstone.progress import Progress, step


def split_gguf(path: Path, limit_bytes: int, progress: Progress) -> list[Path]:
    """Replace a file by parts of at most `limit_bytes` beside it; a file that is small enough stays as it is.

    Raises ConfigError if a tensor, or the vocabulary, is larger than that.
    """
    header = read_header(path)
    room = limit_bytes - header.data_offset
    largest = max(header.tensors, key=lambda tensor: tensor.size_bytes)
    if header.size_bytes <= limit_bytes:
        return [path]
    if largest.size_bytes > room:
        least = header.data_offset + largest.size_bytes
        raise ConfigError(f"--split: {path.name} cannot be cut smaller than {least:,} bytes, for {largest.name}.")
    folder = converter_folder(progress)
    try:
        with (
            step(progress, f"Splitting {path.name}"),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".partial") as work,
        ):
            job = {"source": str(path), "out": work, "name": path.name, "limit": room}
            names = run_child("export.split_child", job, "splitting", [folder / "gguf-py"])
            parts = [path.with_name(part_name(path.stem, number, len(names))) for number in range(1, len(names) + 1)]
            for name, part in zip(names, parts, strict=True):
                sync(Path(work) / name)
                (Path(work) / name).replace(part)
            sync(path.parent)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be split: {error.strerror or error}.") from error
    path.unlink()
    return parts
