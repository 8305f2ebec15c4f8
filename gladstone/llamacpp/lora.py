"""LoRA adapters in GGUF, checked against their model before llama.cpp loads them.

llama.cpp accepts any adapter whose shapes fit, ignores tensors that it does not know, and aborts on a key of the wrong
type.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gladstone import file_names
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ConfigError, UnsupportedError
from gladstone.gguf.header import GgufHeader, read_header
from gladstone.gguf.kinds import identify_kind
from gladstone.gguf.types import Tensor

FLOAT32 = 6  # value type of a key
DOWN, UP = ".lora_a", ".lora_b"
WEIGHT_TYPES = ("F32", "F16", "BF16", "Q8_0")
EMBEDDING = "token_embd.weight"
ALPHA = "adapter.lora.alpha"


@dataclass(frozen=True)
class Lora:
    """An adapter's file and its scale."""

    path: Path
    scale: float = 1.0


def parse_lora(text: str) -> Lora:
    """Parse 'adapter.gguf' or 'adapter.gguf=0.5'. Raises ConfigError for a scale that is not a finite number."""
    file, separator, number = text.rpartition("=")
    if not separator or Path(text).is_file():
        return Lora(Path(text))
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ConfigError(f"the adapter {text!r}: expected FILE or FILE=SCALE, for example adapter.gguf=0.5.")
    return Lora(Path(file), scale)


def check_lora(path: Path, model: Sequence[GgufHeader]) -> None:
    """Check that an adapter fits the model whose parts have the headers `model`.

    Raises ArtifactError for a damaged adapter or one of another model, UnsupportedError for a kind of adapter that
    llama.cpp does not apply.
    """
    header = _read(path)
    _check_kind(header)
    metadata, ours = header.metadata, model[0].metadata
    architecture, expected = metadata.get("general.architecture"), ours["general.architecture"]
    if architecture != expected:
        raise ArtifactError(f"{path}: the adapter's architecture is {architecture!r}, the model's is {expected!r}.")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and template != ours.get("tokenizer.chat_template"):
        raise ArtifactError(
            f"{path}: trained with another chat template than that of {model[0].path.name}: its answers would be "
            "wrong. Use it with the base model's file that was exported with it."
        )
    tensors = {tensor.name: tensor for part in model for tensor in part.tensors}
    _check_pairs(path, header.tensors, tensors)


def _read(path: Path) -> GgufHeader:
    """Read the header. For a PEFT adapter's folder the ArtifactError says how to convert it."""
    if path.is_dir() and (path / file_names.ADAPTER_CONFIG).is_file():
        command = command_line("gladstone", "export", "lora", path)
        raise ArtifactError(f"{path}: a PEFT adapter's folder, expected the adapter as GGUF. `{command}` converts it.")
    return read_header(path, is_model=False)


def _check_kind(header: GgufHeader) -> None:
    metadata, path = header.metadata, header.path
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        kind = identify_kind(metadata, (tensor.name for tensor in header.tensors))
        what = f"it is {kind.noun}" if kind else "it is a model, which is given first, without --lora"
        raise ArtifactError(f"{path}: not a LoRA adapter (general.type is {metadata.get('general.type')!r}): {what}.")
    alpha = metadata.get(ALPHA)
    if alpha is not None and (header.value_types[ALPHA] != FLOAT32 or not math.isfinite(alpha)):
        raise ArtifactError(f"{path}: {ALPHA} is {alpha!r}, expected a finite f32.")
    if any("alora" in key for key in metadata):
        raise UnsupportedError(f"{path}: an activated LoRA (aLoRA), which this runtime does not support.")


def _check_pairs(path: Path, adapter: Sequence[Tensor], model: dict[str, Tensor]) -> None:
    """Check that the tensors form pairs, each of which fits a tensor of the model."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in adapter:
        kind = tensor.name[-len(DOWN) :]
        if kind not in (DOWN, UP):
            raise UnsupportedError(f"{path}: holds {tensor.name}, which llama.cpp would ignore.")
        if tensor.type_name not in WEIGHT_TYPES:
            raise UnsupportedError(f"{path}: {tensor.name} is of type {tensor.type_name}, expected {WEIGHT_TYPES}.")
        halves.setdefault(tensor.name[: -len(DOWN)], {})[kind] = tensor
    if not halves:
        raise ArtifactError(f"{path}: the adapter holds no tensor.")
    for name, pair in halves.items():
        if len(pair) != 2:
            raise ArtifactError(f"{path}: {name} has only one of its two matrices, expected lora_a and lora_b.")
        if name not in model or not _fits(name, pair[DOWN].shape, pair[UP].shape, model[name].shape):
            raise ArtifactError(f"{path}: not an adapter of this model, whose {name} is missing or of another shape.")


def _fits(name: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Shapes with the fastest dimension first: weight (in, out), down (in, rank), up (rank, out)."""
    if len(down) < 2 or len(weight) < 2:
        return False
    if name == EMBEDDING:  # looked up, not multiplied: rows of (entries, rank)
        return down[1:] == weight[1:] and up == (down[0], weight[0])
    rank, others = down[1], weight[2:]
    return down == (weight[0], rank, *others) and up == (rank, weight[1], *others)
