"""Training a decoder with Unsloth and TRL's SFTTrainer. Names torch, unsloth, trl, transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.labels import Example
from finetune.recipe import Recipe
from finetune.trainable import (
    OnStep,
    Trainable,
    check_targets,
    counting_trainer,
    needs_checkpointing,
    trainer_arguments,
)
from gladstone.basemodel import Base
from gladstone.errors import UnsupportedError


def load_trainable(base: Base, recipe: Recipe, pad_id: int, longest_tokens: int) -> Trainable:
    """Load the base with Unsloth and put a LoRA adapter on it.

    Raises UnsupportedError if the model has none of the recipe's target layers or 4-bit does not work here.
    """
    fast_language_model = _import_unsloth()
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
    check_targets(model, recipe)
    set_seed(recipe.training.seed)
    checkpointing = needs_checkpointing(model, recipe, longest_tokens)
    model = fast_language_model.get_peft_model(
        model,
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.targets),
        use_rslora=recipe.lora.rslora,
        **({"fan_in_fan_out": True} if has_conv1d(model) else {}),
        use_gradient_checkpointing=("unsloth" if torch.cuda.is_available() else True) if checkpointing else False,
        random_state=recipe.training.seed,
    )
    return Trainable(model, pad_id, checkpointing)


def has_conv1d(model: Any) -> bool:
    """True for GPT-2's kind, which keeps the weights of its layers transposed: PEFT wants to be told."""
    return any(type(each).__name__ == "Conv1D" for each in model.modules())


def train(trainable: Trainable, examples: Sequence[Example], recipe: Recipe, on_step: OnStep, work: Path) -> None:
    """Run the optimisation; `on_step` gets each step's figures and the number of steps, `work` is scratch space.

    Raises DataError if nothing is scored in a step or the loss is not finite.
    """
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **trainer_arguments(trainable, recipe, work),
        max_length=recipe.base.max_tokens,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = counting_trainer(SFTTrainer, trainable, examples, arguments, on_step)
    _hold_adapter_in_float32(trainable.model)
    trainer.train()


def _hold_adapter_in_float32(model: Any) -> None:
    """Undo SFTTrainer's cast of a 4-bit model's adapter to bfloat16.

    With eight significant bits most updates of a step are rounded away, and on a processor without bfloat16 arithmetic
    the adapter's small products take half of the step (measured: 60 against 150 tokens/s).
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _import_unsloth() -> Any:
    """Unsloth's model class; imported before torch's other users, since it patches them."""
    from unsloth import FastLanguageModel

    return FastLanguageModel
