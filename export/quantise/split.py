"""Splits a GGUF into parts, for file systems and hosts with a size limit; llama.cpp loads the first part."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from export.convert.llamacpp_converter import converter_folder
from gladstone.artifacts import flush_to_disk
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf.header import GgufHeader, read_header
from gladstone.gguf.parts import part_name
from gladstone.process.child import ChildOptions, run_child


def check_split(name: str, header: GgufHeader, tensor_bytes: Mapping[str, int], limit_bytes: int) -> None:
    """Raises ConfigError if the header and the largest tensor exceed the size of a part.

    A file within the limit is not split.
    """
    if header.data_offset + sum(tensor_bytes.values()) <= limit_bytes:
        return
    largest = max(tensor_bytes, key=lambda tensor: tensor_bytes[tensor])
    least = header.data_offset + tensor_bytes[largest]
    if least > limit_bytes:
        raise ConfigError(f"--split: {name} cannot be split into parts smaller than {least:,} bytes, for {largest}.")


def split_gguf(path: Path, limit_bytes: int, progress: Progress) -> list[Path]:
    """Replace a file by parts of at most `limit_bytes`; a file within the limit stays as it is.

    Raises ConfigError if a tensor or the vocabulary is larger than that.
    """
    header = read_header(path)
    room = limit_bytes - header.data_offset
    if header.size_bytes <= limit_bytes:
        return [path]
    check_split(path.name, header, {tensor.name: tensor.size_bytes for tensor in header.tensors}, limit_bytes)
    folder = converter_folder(progress)
    try:
        with (
            step(progress, f"Splitting {path.name}"),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".partial") as work,
        ):
            job = {"source": str(path), "out": work, "name": path.name, "limit": room}
            names = run_child(
                "export.quantise.split_child", job, "splitting", ChildOptions(python_path=[folder / "gguf-py"])
            )
            parts = [path.with_name(part_name(path.stem, number, len(names))) for number in range(1, len(names) + 1)]
            for name, part in zip(names, parts, strict=True):
                flush_to_disk(Path(work) / name)
                (Path(work) / name).replace(part)
            flush_to_disk(path.parent)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be split: {error.strerror or error}.") from error
    path.unlink()
    return parts
