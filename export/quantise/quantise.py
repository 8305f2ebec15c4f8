"""Quantises a GGUF with llama.cpp's quantiser in a child process."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.quantise.types import QUANTS, TENSOR_TYPE_IDS, Override, Quantisation
from gladstone.artifacts import atomic_file
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf.header import GgufHeader, read_header
from gladstone.gguf.types import ALIGNMENT, TENSOR_TYPES
from gladstone.machine.host import core_count
from gladstone.process.child import run_child


@dataclass(frozen=True)
class Fallback:
    """A tensor whose row length is no multiple of its type's block size, and the type it got instead."""

    tensor: str
    columns: int
    wanted: str
    got: str


@dataclass(frozen=True)
class Quantised:
    """The size of a quantised file, made or predicted, and its fallbacks."""

    size_bytes: int
    fallbacks: tuple[Fallback, ...]


def quantise(source: Path, out: Path, quantisation: Quantisation, progress: Progress) -> Quantised:
    """Write the quantised file `out`, whole or not at all.

    Raises ArtifactError if source and target are the same file, which llama.cpp would destroy; ConfigError for an
    override that matches no tensor; ToolError if the quantiser fails.
    """
    if out.exists() and out.samefile(source):
        raise ArtifactError(f"{out}: source and target are the same file.")
    with step(progress, f"Quantising to {quantisation.quant.upper()}"), atomic_file(out) as partial:
        said = _call(source, quantisation, partial, progress)
        size_bytes = partial.stat().st_size
    return Quantised(size_bytes, _fallbacks(said))


def predict(source: Path, quantisation: Quantisation) -> Quantised:
    """What `quantise` would make of a GGUF; needs only its header. Raises as `quantise` does."""
    said = _call(source, quantisation, None, None)
    header = read_header(source)
    total = header.data_offset + sum(_tensor_bytes(header, said["types"]).values())
    return Quantised(total, _fallbacks(said))


def predicted_bytes(source: Path, quantisation: Quantisation) -> dict[str, int]:
    """Padded size of each tensor after quantising; needs only the header. Raises as `quantise` does."""
    return _tensor_bytes(read_header(source), _call(source, quantisation, None, None)["types"])


def _tensor_bytes(header: GgufHeader, types: Mapping[str, str]) -> dict[str, int]:
    kinds = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
    found = {}
    for tensor in header.tensors:
        block, size = kinds[types.get(tensor.name, tensor.type_name.lower()).upper()]
        found[tensor.name] = -(-(math.prod(tensor.shape) // block * size) // ALIGNMENT) * ALIGNMENT
    return found


def check_overrides(overrides: Sequence[Override], names: Sequence[str]) -> None:
    """Raises ConfigError for a pattern that matches no tensor name."""
    for override in overrides:
        if not any(re.search(override.pattern, name) for name in names):
            examples = ", ".join(sorted({re.sub(r"\.\d+\.", ".0.", name) for name in names})[:8])
            raise ConfigError(
                f"--tensor-type {override.pattern}={override.kind}: no tensor name matches; names are {examples}, …"
            )


def _call(source: Path, quantisation: Quantisation, out: Path | None, progress: Progress | None) -> dict[str, Any]:
    overrides = quantisation.overrides if quantisation.is_quantised else ()
    if overrides:
        check_overrides(overrides, [tensor.name for tensor in read_header(source).tensors])
    job = {
        "source": str(source),
        "out": str(out) if out else "",
        "dry_run": out is None,
        "file_type": QUANTS[quantisation.quant],
        "overrides": [(override.pattern, TENSOR_TYPE_IDS[override.kind]) for override in overrides],
        "imatrix": str(quantisation.imatrix) if quantisation.imatrix and quantisation.is_quantised else None,
        "threads": core_count(),
    }
    said: dict[str, Any] = run_child(
        "export.quantise.quantise_child", job, f"quantising to {quantisation.quant}", progress=progress
    )
    return said


def _fallbacks(said: dict[str, Any]) -> tuple[Fallback, ...]:
    return tuple(Fallback(*fields) for fields in said["fallbacks"])


def describe_fallbacks(quant: str, fallbacks: tuple[Fallback, ...]) -> str:
    """The fallbacks as one sentence."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for fallback in fallbacks:
        groups.setdefault((fallback.wanted, fallback.got, fallback.columns), []).append(fallback.tensor)
    parts = [
        f"{len(names)} with rows of {columns:,} weights become {got} instead of {wanted}"
        for (wanted, got, columns), names in groups.items()
    ]
    return f"{quant}: {len(fallbacks)} tensors cannot have this type: {', '.join(parts)}."
