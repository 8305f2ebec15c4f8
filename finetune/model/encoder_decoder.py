"""An encoder–decoder model (T5) with a LoRA adapter, always in float32. Names torch, transformers, peft.

T5 overflows in float16.
"""

from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import check_targets, needs_checkpointing
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base
from gladstone.process.import_without_gc import import_without_gc


def load_model(base: Base, recipe: Recipe, longest_tokens: int) -> tuple[Any, bool]:
    """As `finetune.model.decoder.load_model`. Raises UnsupportedError for 4 bit or a missing target layer."""
    with import_without_gc():
        import torch
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForSeq2SeqLM, set_seed

    if recipe.base.load_in_4bit:
        raise UnsupportedError(
            f"{base.name}: encoder–decoder models are trained in float32; set base.load_in_4bit=false."
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        base.folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    check_targets(model, recipe)
    set_seed(recipe.training.seed)
    checkpointing = needs_checkpointing(model, recipe, longest_tokens)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            **recipe.lora.peft_settings,
        ),
    )
    adapted.train()
    return adapted, checkpointing
