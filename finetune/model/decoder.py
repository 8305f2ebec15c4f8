"""A decoder-only model with a LoRA adapter, loaded and patched by Unsloth. Names torch, unsloth, transformers."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import check_targets, needs_checkpointing
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base
from gladstone.models.tokenizer import load_tokenizer
from gladstone.process.import_without_gc import import_without_gc


def load_model(base: Base, recipe: Recipe, longest_tokens: int) -> tuple[Any, bool]:
    """Load the base with a fresh adapter; the second value is True if its activations are recomputed.

    Raises UnsupportedError if a target layer is missing or the model cannot be loaded in 4 bit on this machine.
    """
    fast_language_model = import_unsloth()
    import torch
    from transformers import set_seed

    try:
        with _tokenizer_for_unsloth(base) as tokenizer_folder:
            model, _ = fast_language_model.from_pretrained(
                str(base.folder),
                tokenizer_name=tokenizer_folder,
                max_seq_length=recipe.base.max_tokens,
                load_in_4bit=recipe.base.load_in_4bit,
                dtype=None,
                offload_embedding=False,  # or it may lie in host memory, and model.device say cpu
                local_files_only=True,
                trust_remote_code=False,
            )
    except (ImportError, NotImplementedError) as error:
        raise UnsupportedError(f"{base.name} cannot be loaded for training here: {error}") from error
    if recipe.base.load_in_4bit and not getattr(model, "is_loaded_in_4bit", False):
        raise UnsupportedError(  # unsloth would silently continue in 16 bit, with four times the memory
            f"{base.name} cannot be loaded in 4 bit here: its layers are too narrow, or bitsandbytes does not support "
            "this processor. Set base.load_in_4bit=false."
        )
    if recipe.base.load_in_4bit and model.device.type == "cpu":
        _release_mapped_files(model)
    check_targets(model, recipe)
    set_seed(recipe.training.seed)
    checkpointing = needs_checkpointing(model, recipe, longest_tokens)
    model = fast_language_model.get_peft_model(
        model,
        **recipe.lora.peft_settings | (_conv1d_settings(recipe) if has_conv1d(model) else {}),
        use_gradient_checkpointing=("unsloth" if torch.cuda.is_available() else True) if checkpointing else False,
        random_state=recipe.training.seed,
    )
    model.peft_config["default"].target_modules = set(recipe.lora.targets)  # names, as every reader of adapters expects
    _hold_adapter_in_float32(model)
    return model, checkpointing


@contextmanager
def _tokenizer_for_unsloth(base: Base) -> Iterator[str | None]:
    """Yield a folder whose tokenizer pads with another token than it ends with; None if the base's own does.

    On a GPU Unsloth else adds a token, with a row of the embedding that the base does not have, or fails. Nothing is
    padded with it: rows are padded with masked tokens.
    """
    tokenizer = load_tokenizer(base.folder).hf
    rows = base.config.get("vocab_size", len(tokenizer))
    if tokenizer.pad_token not in (None, tokenizer.eos_token) and tokenizer.pad_token_id < rows:
        yield None
        return
    tokenizer.pad_token = next(
        token for token in map(tokenizer.convert_ids_to_tokens, range(2)) if token != tokenizer.eos_token
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        yield folder


def _release_mapped_files(model: Any) -> None:
    """Copy the weights: an unconverted one, such as a 16-bit embedding, is a view that keeps its file mapped."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def has_conv1d(model: Any) -> bool:
    """True if the layers store transposed weights, as GPT-2's do; PEFT needs to know."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _conv1d_settings(recipe: Recipe) -> dict[str, Any]:
    """PEFT's settings for transposed weights; Unsloth counts no such layer on a GPU, but takes an expression."""
    names = "|".join(map(re.escape, recipe.lora.targets))
    return {"fan_in_fan_out": True, "target_modules": rf"(?:.*\.)?(?:{names})"}


def _hold_adapter_in_float32(model: Any) -> None:
    """Convert the adapter to float32: with the 8 significant bits of bfloat16 most updates would be rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def import_unsloth() -> Any:
    """Return Unsloth's model class; call it before other libraries import torch, because Unsloth patches them.

    Raises UnsupportedError if Unsloth refuses this machine.
    """
    try:
        with import_without_gc():
            from unsloth import FastLanguageModel
    except NotImplementedError as error:
        reason = " ".join(str(error).split()).removeprefix("Unsloth: ")
        raise UnsupportedError(f"Unsloth cannot train here: {reason} Or use the CPU: --device cpu.") from error

    return FastLanguageModel
