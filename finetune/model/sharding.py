"""FSDP: the frozen weights of the layers are sharded over the processes. Names torch."""

import os
from typing import Any

from finetune.config.schema import Recipe
from gladstone.commands.progress import Silent
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base, find_local_base


def sharding_requested() -> bool:
    """True if the launcher asks for FSDP, and there are processes to shard over."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding(recipe: Recipe, base: Base | None = None) -> None:
    """Raise UnsupportedError if FSDP is requested for what it cannot shard; call it before anything is loaded.

    Without `base` nothing is downloaded: the kind of a base that is only on the Hub is that of the recipe's facts.
    """
    if not sharding_requested():
        return
    import torch

    if recipe.base.load_in_4bit:
        raise UnsupportedError(
            "4-bit weights cannot be sharded over processes (FSDP): set base.load_in_4bit=false, or leave out FSDP "
            "(ACCELERATE_USE_FSDP, --use_fsdp): every process then holds the whole base in 4 bit."
        )
    if torch.cuda.is_available() and _patched_by_unsloth(recipe, base):
        raise UnsupportedError(
            f"{recipe.base.model}: on a GPU Unsloth's kernels compute the layers, and they read weights that FSDP "
            "would shard. Leave out FSDP (ACCELERATE_USE_FSDP, --use_fsdp): with base.load_in_4bit=true every GPU "
            "holds the whole base in a quarter of the memory. Encoder–decoder models can be sharded."
        )


def _patched_by_unsloth(recipe: Recipe, base: Base | None) -> bool:
    """True for decoders; False for an encoder–decoder model, and for a base that nothing is known of yet."""
    if base is None and recipe.hub is not None:
        return not recipe.hub.architecture.startswith("T5")
    base = base or find_local_base(recipe.base.model, Silent())
    return base is not None and not base.is_encoder_decoder


def shard_frozen_weights(model: Any) -> None:
    """Shard the layers' frozen weights over the processes (FSDP); each keeps all of embeddings, head and adapter."""
    import torch
    from torch.distributed.fsdp import fully_shard

    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for lists in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for layer in lists:
            fully_shard(layer, ignored_params={parameter for parameter in layer.parameters() if parameter in trained})
