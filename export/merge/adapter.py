"""Reads a LoRA adapter as PEFT saves it: the updates it makes to the base's tensors.

An adapter with a tensor of unknown meaning is refused, so that nothing trained is dropped.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.merge.tensor_names import Part, is_table, read_parts
from export.merge.updates import BiasUpdate, FullTensor, LowRankUpdate, TokenRows, Update
from export.original.settings import read_settings
from export.tensors.safetensors_io import StoredTensor
from export.tensors.weights import read_adapter_tensors
from gladstone.errors import ArtifactError, UnsupportedError, listed
from gladstone.strict_json import json_text

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # store W as (in, out)
MOVED_BASES = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # initialisations that move a part of the base into the adapter
MERGED = {  # settings that the merge reads, or that do not affect what an adapter computes
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
ORDER = (FullTensor, TokenRows, LowRankUpdate, BiasUpdate)  # order of application
HALVES = {  # parts that a part requires
    "up": ("down",),
    "up bias": ("down",),
    "embedding up": ("embedding down",),
    "magnitude": ("down", "embedding down"),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter's updates, keyed by PEFT's name of the base tensor."""

    folder: Path
    updates: Mapping[str, tuple[Update, ...]]
    frozen: Mapping[str, StoredTensor] = field(default_factory=dict)  # embedding and head as they were before training
    ties: bool = False  # embedding and head stayed tied (ensure_weight_tying)


def read_adapter(folder: Path, weight: float = 1.0, *, model_type: str = "") -> Adapter:
    """Read the adapter in a folder, scaled by `weight`.

    `model_type` is the base's. Raises ArtifactError if the folder holds no adapter, UnsupportedError for one that
    cannot be merged exactly.
    """
    config, tensors = _read_config(folder), read_adapter_tensors(folder)
    parts = read_parts(tensors, config)
    if not parts:
        raise ArtifactError(f"{folder}: the adapter holds no tensor.")
    updates: dict[str, list[Update]] = {}
    for name, update in _updates(config, parts, weight, model_type):
        updates.setdefault(name, []).append(update)
    for group in updates.values():
        group.sort(key=lambda update: ORDER.index(type(update)))
    whole = [name for name, group in updates.items() if not isinstance(group[0], LowRankUpdate | BiasUpdate)]
    if weight != 1 and whole:
        raise UnsupportedError(f"{folder}: {whole[0]} was trained as a full tensor and cannot be scaled by {weight}.")
    if weight != 1 and config.get("use_dora"):
        raise UnsupportedError(f"{folder}: a DoRA adapter cannot be scaled by {weight}.")
    frozen = {part.name: stored for part, (_, stored) in parts.items() if part.role == "frozen"}
    _refuse_lost(frozen, updates)
    tables = {name: stored for name, stored in frozen.items() if is_table(name.rpartition(".")[0])}
    ties = bool(config.get("ensure_weight_tying"))
    return Adapter(folder, {name: tuple(group) for name, group in updates.items()}, tables, ties)


def _refuse_lost(frozen: Mapping[str, StoredTensor], updates: Mapping[str, list[Update]]) -> None:
    """Raises UnsupportedError for an untrained value without its trained counterpart."""
    lost = [name for name in frozen if not is_table(name.rpartition(".")[0]) and name not in updates]
    if lost:
        raise UnsupportedError(f"the adapter holds the untrained value of {lost[0]}, but not what was trained of it.")


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UnsupportedError for a setting that the merge does not support."""
    config = read_settings(folder).values
    unknown = [f"{key} = {json_text(config[key])[:80]}" for key in sorted(config.keys() - MERGED) if config[key]]
    if str(config.get("init_lora_weights")).lower().startswith(MOVED_BASES):
        unknown.append(
            f"init_lora_weights = {config['init_lora_weights']!r}: a part of the base was moved into the adapter, so "
            "the original base does not fit (PEFT's save_pretrained converts it: "
            "path_initial_model_for_weight_conversion)"
        )
    if unknown:
        raise UnsupportedError(listed(f"{folder}: settings that cannot be merged", unknown))
    return config


def _updates(
    config: dict[str, Any], parts: Mapping[Part, tuple[str, StoredTensor]], weight: float, model_type: str
) -> Iterator[tuple[str, Update]]:
    """Yield (name of the base tensor, update); the two factors of a pair form one update."""
    for part, (key, stored) in parts.items():
        module, role = part.module, part.role
        if role == "trained":
            yield part.name, FullTensor(part.name, stored, is_table(module))
        elif role == "rows":
            yield part.name, TokenRows(part.name, _token_ids(config, module), stored)
        elif role in ("down", "embedding down"):
            factors = _halves(part, key, stored, parts, dora=bool(config.get("use_dora")))
            scale = weight * scaling(config, module, stored.shape[0])
            embedding = role == "embedding down"
            conv1d = not embedding and _is_conv1d(config, model_type, module)
            yield part.name, LowRankUpdate(module, *factors, conv1d=conv1d, embedding=embedding, scale=scale)
            bias = parts.get(Part(module, "up bias"))
            if bias:
                yield f"{module}.bias", BiasUpdate(f"{module}.bias", bias[1], scale)
        elif role in HALVES and not any(Part(module, half) in parts for half in HALVES[role]):
            raise UnsupportedError(f"the adapter holds {key}, which has no other half.")
    for part, (key, _) in parts.items():
        if ".lora_" in part.name:
            raise UnsupportedError(f"the adapter holds {key}, which this export cannot merge.")


def _halves(
    part: Part, key: str, down: StoredTensor, parts: Mapping[Part, tuple[str, StoredTensor]], *, dora: bool
) -> tuple[StoredTensor, StoredTensor, StoredTensor | None]:
    """A (rank, in), B (out, rank) and the DoRA magnitude of the module whose A is `part`."""
    up = parts.get(Part(part.module, part.role.replace("down", "up")))
    if up is None:
        raise UnsupportedError(f"the adapter has {key} without its lora_B.")
    magnitude = parts.get(Part(part.module, "magnitude"))
    if dora and magnitude is None:
        raise UnsupportedError(f"the adapter is a DoRA, but has no lora_magnitude_vector for {part.module}.")
    return down, up[1], magnitude[1] if magnitude else None


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The scale of a module's update in PEFT: alpha / rank, or alpha / √rank for rsLoRA, with alpha_pattern applied."""
    alpha = float(config["lora_alpha"])
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(own)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _is_conv1d(config: dict[str, Any], model_type: str, module: str) -> bool:
    """True if the base stores W as (in, out); in GPT-2 every module but the head does."""
    if model_type:
        return model_type in CONV1D_MODELS and module != "lm_head"
    return bool(config.get("fan_in_fan_out"))


def _token_ids(config: dict[str, Any], module: str) -> tuple[int, ...]:
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):  # a tied head trains the same tokens as its embedding
        own = next((rows for name, rows in indices.items() if module.endswith(name)), None)
        indices = own or (next(iter(indices.values())) if len(indices) == 1 and is_table(module) else None)
    if (
        not isinstance(indices, list)
        or not indices
        or not all(isinstance(token, int) and token >= 0 for token in indices)
    ):
        raise UnsupportedError(f"the adapter holds trained tokens of {module}, but its settings do not say which.")
    return tuple(indices)
