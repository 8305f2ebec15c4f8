"""A base model with its adapter, ready to be trained. Names torch, safetensors."""

import ctypes
import gc
import json
import math
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.distributed import SINGLE_PROCESS, DistributedContext, local_processes
from finetune.model.loss import Forward
from finetune.sizing.memory import ComputeSetting, fullest_micro_batch, gpu_setting, needs_recomputing
from finetune.sizing.model_shape import shape_of_config
from gladstone import file_names
from gladstone.errors import UnsupportedError
from gladstone.machine.gpu_memory import usable_gpu_bytes
from gladstone.machine.host import available_memory_bytes, cache_dir
from gladstone.strict_json import json_text

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>


@dataclass
class Trainable:
    """A model with an adapter, and how its loss is computed.

    `initial_adapter` holds the untrained adapter if it was subtracted from the base's weights.
    """

    model: Any
    forward: Forward
    checkpointing: bool
    compiled: bool = False
    context: DistributedContext = SINGLE_PROCESS
    initial_adapter: dict[str, Any] | None = None

    @property
    def device_kind(self) -> str:
        """Device type, such as 'cpu' or 'cuda'."""
        return str(self.model.device.type)

    @property
    def dtype(self) -> str:
        """Name of the dtype of activations, such as 'bfloat16'."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def forced_float32(self) -> bool:
        """True if Unsloth computes the model in float32 because float16 overflows in it, such as Gemma 3 on a T4."""
        return bool(getattr(self.model, "_unsloth_forced_float32", False))

    def make_scaler(self) -> Any:
        """Return the scaler of the gradients, enabled only in float16.

        Unsloth takes the gradient of its loss in the forward pass, where it needs the scale: its model finds it there.
        """
        import torch

        half = self.dtype == "float16" and not self.forced_float32
        scaler = torch.amp.GradScaler(self.device_kind, enabled=half)
        if half:
            for module in self.model.modules():
                module.accelerator_scaler = scaler
        return scaler

    def train(self) -> None:
        """Put the model into training mode and recompute activations again, which Unsloth's `generate` ends."""
        for_training = getattr(self.model, "for_training", None)
        if for_training is None:
            self.model.train()
        else:
            for_training(use_gradient_checkpointing=self.checkpointing)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context that computes matrix products in the model's 16-bit dtype; the adapter stays in float32."""
        import torch

        if self.model.dtype == torch.float32 or self.forced_float32:
            return nullcontext()
        casting: AbstractContextManager[Any] = torch.autocast(self.device_kind, dtype=self.model.dtype)
        return casting

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Return a context that runs layers uncompiled: without gradients they would be compiled once more."""
        import torch

        if not self.compiled:
            return nullcontext()
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance


def prepare_environment() -> None:
    """Set what libraries read when they are imported; call it before anything imports torch.

    Unsloth and the Hub client send no statistics; Unsloth stores its generated code in Gladstone's cache.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth_compiled"))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Make glibc reuse the memory that a step frees instead of returning it to the kernel.

    Every step allocates the same hundreds of megabytes, and the kernel zeroes each page that it hands out. Measured:
    elementwise operations take 35 % less time, large products 10 to 20 % less.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 256 << 20)):
            mallopt(option, value)


def save_adapter(trainable: Trainable, base_name: str, folder: Path) -> None:
    """Write the adapter as safetensors; its config names the base as the recipe does, not by a local path.

    If the initial adapter was subtracted from the base (PiSSA, OLoRA), the difference from it is written, of twice the
    rank, so that the adapter fits the unchanged base. Raises OSError if it cannot be written.
    """
    from safetensors import SafetensorError

    try:
        trainable.model.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / file_names.ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_name
        if trainable.initial_adapter is not None:
            config |= _save_difference(trainable.initial_adapter, config, folder / file_names.ADAPTER_WEIGHTS)
        path.write_text(json_text(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except SafetensorError as error:  # safetensors' error for a full disk
        raise OSError(str(error)) from error


def _save_difference(initial_adapter: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write B A - B₀ A₀ as one product [B B₀] [A; -A₀] of twice the rank; return the settings that keep its scale."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name, before in initial_adapter.items():
        saved = name.replace(".default.", ".")
        is_a = ".lora_A." in name  # A is (rank, in), B (out, rank)
        parts = [tensors[saved], before.to(tensors[saved]) * (1 if is_a else -1)]
        tensors[saved] = torch.cat(parts, dim=0 if is_a else 1).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    scale = math.sqrt(2) if config["use_rslora"] else 2
    return {"r": 2 * config["r"], "lora_alpha": scale * config["lora_alpha"], "init_lora_weights": True}


def check_targets(model: Any, recipe: Recipe) -> None:
    """Raise UnsupportedError, which lists the model's linear layers, if one of the recipe's targets is missing."""
    linear = ("Linear", "Linear4bit", "Conv1D")
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in linear}
    missing = [target for target in recipe.lora.targets if target not in names]
    if missing:
        raise UnsupportedError(
            f"lora.targets: {recipe.base.model} has no layers called {', '.join(missing)}; its layers are called "
            f"{', '.join(sorted(names - {'lm_head'}))}."
        )


def needs_checkpointing(model: Any, recipe: Recipe, longest_tokens: int) -> bool:
    """True if the activations of the largest micro-batch do not fit into memory beside the loaded weights."""
    import torch

    shape = shape_of_config(model.config.to_dict())
    if model.device.type == "cuda":
        free = usable_gpu_bytes()
        setting = gpu_setting(shape, torch.cuda.get_device_capability(model.device))
    else:
        free = available_memory_bytes() // local_processes()
        setting = ComputeSetting(4 if model.dtype == torch.float32 else 2, padded=shape.refuses_packing)
    return needs_recomputing(shape, recipe, setting, fullest_micro_batch(shape, recipe, longest_tokens), free)


def release_memory() -> None:
    """Return unused memory to the system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
