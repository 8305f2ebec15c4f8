"""A decoder with a LoRA adapter, as Unsloth loads and patches it. Names torch, unsloth, transformers."""

from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import check_targets, needs_checkpointing
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base
from gladstone.process.import_without_gc import import_without_gc


def load_model(base: Base, recipe: Recipe, longest_tokens: int) -> tuple[Any, bool]:
    """The base with a fresh adapter, and whether its activations are recomputed.

    Raises UnsupportedError if the model has none of the recipe's target layers or 4-bit does not work here.
    """
    fast_language_model = import_unsloth()
    import torch
    from transformers import set_seed

    try:
        model, _ = fast_language_model.from_pretrained(
            str(base.folder),
            max_seq_length=recipe.base.max_tokens,
            load_in_4bit=recipe.base.load_in_4bit,
            dtype=None,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ImportError, NotImplementedError) as error:
        raise UnsupportedError(f"{base.name} cannot be loaded for training here: {error}") from error
    if recipe.base.load_in_4bit and not getattr(model, "is_loaded_in_4bit", False):
        raise UnsupportedError(  # unsloth goes on in 16 bit, which takes four times the memory
            f"{base.name} cannot be held in 4 bit here: its layers are too narrow, or bitsandbytes does not work on "
            "this processor. Set base.load_in_4bit=false."
        )
    if recipe.base.load_in_4bit and model.device.type == "cpu":
        _let_go_of_the_files(model)
    check_targets(model, recipe)
    set_seed(recipe.training.seed)
    checkpointing = needs_checkpointing(model, recipe, longest_tokens)
    model = fast_language_model.get_peft_model(
        model,
        **recipe.lora.peft_settings,
        **({"fan_in_fan_out": True} if has_conv1d(model) else {}),
        use_gradient_checkpointing=("unsloth" if torch.cuda.is_available() else True) if checkpointing else False,
        random_state=recipe.training.seed,
    )
    _hold_adapter_in_float32(model)
    return model, checkpointing


def _let_go_of_the_files(model: Any) -> None:
    """A weight that needs no other type, as an embedding in 16 bit, is a view of its mapped file and keeps it whole."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def has_conv1d(model: Any) -> bool:
    """True for GPT-2's kind, which keeps the weights of its layers transposed: PEFT wants to be told."""
    return any(type(each).__name__ == "Conv1D" for each in model.modules())


def _hold_adapter_in_float32(model: Any) -> None:
    """With the eight significant bits of bfloat16 most updates of a step would be rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def import_unsloth() -> Any:
    """Unsloth's model class; imported before torch's other users, since it patches them."""
    with import_without_gc():
        from unsloth import FastLanguageModel

    return FastLanguageModel
