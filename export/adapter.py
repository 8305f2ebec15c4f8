"""A LoRA adapter as PEFT saves it: which tensors of the base it changes, and how. Names torch.

Every tensor of the file has a meaning here or the adapter is refused: nothing that was trained is dropped.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export.shards import Stored, read_header
from gladstone.errors import ArtifactError, UnsupportedError, listed

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # keep W as (in, out)
MOVED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings that take a part out of the base
MERGED = {  # settings that the merge reads, or that say nothing about what an adapter computes
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip


class Update(Protocol):
    """How an adapter changes one tensor of the base."""

    def apply(self, weight: Any) -> Any:
        """The changed tensor in float32, from the base's in float32. Raises UnsupportedError if it does not fit."""


@dataclass(frozen=True)
class LowRank:
    """W + scale · B·A; with a magnitude (DoRA) each of its output rows is brought to that length."""

    name: str
    down: Stored  # (rank, in); of an embedding (rank, entries)
    up: Stored  # (out, rank); of an embedding (width, rank)
    magnitude: Stored | None
    scale: float
    conv1d: bool = False  # the base keeps W as (in, out)
    embedding: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the base keeps W as (in, out)."""
        return self.conv1d or self.embedding

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        import torch

        update = self.up.read().float() @ self.down.read().float()
        update = (update.T if self.transposed else update).mul_(self.scale)
        if update.shape != weight.shape:
            shapes = f"{tuple(update.shape)}, the base's tensor {tuple(weight.shape)}"
            raise UnsupportedError(f"{self.name}: the adapter's update is {shapes}: it belongs to another base.")
        changed = update.add_(weight)
        if self.magnitude is None:
            return changed
        across = 0 if self.transposed else 1
        length = torch.linalg.vector_norm(changed, dim=across, dtype=torch.float64)
        factor = self.magnitude.read().double().flatten() / length
        return changed.mul_(factor.float().unsqueeze(across))


@dataclass(frozen=True)
class Whole:
    """A tensor that was trained as a whole (modules_to_save, biases)."""

    name: str
    trained: Stored

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        if self.trained.shape != weight.shape:
            shapes = f"{self.trained.shape}, the base's {tuple(weight.shape)}"
            raise UnsupportedError(f"{self.name}: the adapter's tensor is {shapes}: it belongs to another base.")
        return self.trained.read().float()


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding that were trained (trainable_token_indices)."""

    name: str
    tokens: tuple[int, ...]
    trained: Stored  # (tokens, width)

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        import torch

        if self.trained.shape != (len(self.tokens), weight.shape[1]) or max(self.tokens) >= len(weight):
            raise UnsupportedError(f"{self.name}: the adapter's trained tokens do not fit the base's embedding.")
        return weight.index_copy(0, torch.tensor(self.tokens), self.trained.read().float())


@dataclass(frozen=True)
class Shift:
    """A bias with the adapter's own added (lora_bias)."""

    name: str
    bias: Stored
    scale: float

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        return weight + self.scale * self.bias.read().float()


@dataclass(frozen=True)
class Adapter:
    """An adapter's updates by the name that PEFT gives to the base's tensor."""

    folder: Path
    updates: Mapping[str, tuple[Update, ...]]
    ties: bool = False  # embedding and head were kept one (ensure_weight_tying)


def read_adapter(folder: Path, weight: float = 1.0, *, model_type: str = "") -> Adapter:
    """The adapter in a folder, acting with a strength of `weight`.

    `model_type` is the base's. Raises ArtifactError if it is no adapter, UnsupportedError for a kind that would be
    merged wrongly.
    """
    config, tensors = _read_config(folder), _read_tensors(folder)
    updates: dict[str, list[Update]] = {}
    for name, update in _updates(config, tensors, weight, model_type):
        updates.setdefault(name, []).append(update)
    if not updates:
        raise ArtifactError(f"{folder}: the adapter holds no tensor.")
    whole = [name for name, each in updates.items() if not isinstance(each[0], LowRank | Shift)]
    if weight != 1 and whole:
        raise UnsupportedError(f"{folder}: {whole[0]} was trained as a whole and cannot act with the weight {weight}.")
    if weight != 1 and config.get("use_dora"):
        raise UnsupportedError(f"{folder}: a DoRA adapter cannot act with the weight {weight}.")
    ties = bool(config.get("ensure_weight_tying"))
    return Adapter(folder, {name: tuple(each) for name, each in updates.items()}, ties)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"rank {rank}, alpha {alpha}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{folder}: not a LoRA adapter: {CONFIG} is missing or unusable ({error}).") from None
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{folder}: an adapter of type {config.get('peft_type')!r}; LORA can be merged.")
    unknown = [f"{key} = {json.dumps(config[key])[:80]}" for key in sorted(config.keys() - MERGED) if config[key]]
    if str(config.get("init_lora_weights")).lower().startswith(MOVED_BASES):
        unknown.append(
            f"init_lora_weights = {config['init_lora_weights']!r}: a part of the base was moved into the adapter, so "
            "that no untouched base fits (PEFT's save_pretrained converts it: path_initial_model_for_weight_conversion)"
        )
    if unknown:
        raise UnsupportedError(listed(f"{folder}: the adapter has what this export cannot merge", unknown))
    return config


def _read_tensors(folder: Path) -> dict[str, Stored]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{folder}: not a LoRA adapter: {WEIGHTS} is missing (pickled adapters are not loaded).")
    return read_header(path)


def _updates(
    config: dict[str, Any], tensors: dict[str, Stored], weight: float, model_type: str
) -> list[tuple[str, Update]]:
    """(name of the base's tensor, update) for every tensor of the adapter; pairs are taken together."""
    left = dict(tensors)
    found: list[tuple[str, Update]] = []
    for key in tensors:
        for kind in (".lora_A.weight", ".lora_embedding_A"):
            if key.endswith(kind):
                module = key.removeprefix(PREFIX).removesuffix(kind)
                scale = weight * scaling(config, module, tensors[key].shape[0])
                embedding = kind == ".lora_embedding_A"
                conv1d = not embedding and _is_conv1d(config, model_type, module)
                factors = _take(key, kind, left, dora=bool(config.get("use_dora")))
                low = LowRank(module, *factors, conv1d=conv1d, embedding=embedding, scale=scale)
                found.append((f"{module}.weight", low))
                bias = left.pop(key.removesuffix(kind) + ".lora_B.bias", None)
                if bias is not None:
                    found.append((f"{module}.bias", Shift(f"{module}.bias", bias, scale)))
    for key, trained in left.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if key.endswith(".token_adapter.trainable_tokens_delta"):
            module = name.removesuffix(".token_adapter.trainable_tokens_delta")
            found.append((f"{module}.weight", Rows(name, _token_ids(config, module), trained)))
        elif ".lora_" in key:
            raise UnsupportedError(
                f"the adapter holds {key}, which has no other half or which this export cannot merge."
            )
        else:  # first, since a low-rank update of it comes on top
            found.insert(0, (name, Whole(name, trained)))
    return found


def _take(key: str, kind: str, left: dict[str, Stored], *, dora: bool) -> tuple[Stored, Stored, Stored | None]:
    """A, B and the magnitude of the module whose A is called `key`, taken out of `left`."""
    stem = key.removesuffix(kind)
    down, up = left.pop(key), left.pop(stem + kind.replace("_A", "_B"), None)
    if up is None:
        raise UnsupportedError(f"the adapter has {key} without its lora_B.")
    magnitude = left.pop(f"{stem}.lora_magnitude_vector", None)
    if dora and magnitude is None:
        module = stem.removeprefix(PREFIX)
        raise UnsupportedError(f"the adapter is a DoRA, but has no lora_magnitude_vector for {module}.")
    return down, up, magnitude


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """How strongly PEFT lets a module's update act: alpha/rank, of rsLoRA alpha/√rank, alpha as the pattern has it."""
    alpha = float(config["lora_alpha"])
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(own)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _is_conv1d(config: dict[str, Any], model_type: str, module: str) -> bool:
    """Whether the base keeps the module's W transposed; in a GPT-2 all but the head do."""
    if model_type:
        return model_type in CONV1D_MODELS and module != "lm_head"
    return bool(config.get("fan_in_fan_out"))


def _token_ids(config: dict[str, Any], module: str) -> tuple[int, ...]:
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        indices = next((each for name, each in indices.items() if module.endswith(name)), None)
    if not isinstance(indices, list) or not indices or not all(isinstance(each, int) and each >= 0 for each in indices):
        raise UnsupportedError(f"the adapter holds trained tokens of {module}, but its settings do not say which.")
    return tuple(indices)
