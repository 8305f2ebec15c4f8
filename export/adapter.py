"""Reading a LoRA adapter's settings and refusing what the merge cannot do exactly."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError, UnsupportedError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """What the merge needs to know: W' = W + scale · B·A, transposed for Conv1D layers."""

    rank: int
    scale: float
    fan_in_fan_out: bool


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises ArtifactError if it is no adapter, UnsupportedError for a kind that would be merged wrongly."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1:
            raise ValueError(f"rank {rank}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: not a LoRA adapter: {CONFIG} is missing or unusable ({error}).") from None
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(f"{folder}: not a LoRA adapter: {WEIGHTS} is missing (pickled adapters are not loaded).")
    _refuse_unmergeable(folder, config)
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return AdapterConfig(rank, scale, bool(config.get("fan_in_fan_out")))


def _refuse_unmergeable(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{folder}: an adapter of type {config.get('peft_type')!r}; LORA can be merged.")
    unsupported = {
        "use_dora": "DoRA",
        "modules_to_save": "fully trained modules (modules_to_save)",
        "rank_pattern": "ranks that differ by layer (rank_pattern)",
        "alpha_pattern": "strengths that differ by layer (alpha_pattern)",
    }
    found = [what for key, what in unsupported.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        found.append("trained biases")
    if found:
        raise UnsupportedError(f"{folder}: the adapter has {', '.join(found)}, which this export cannot merge.")
