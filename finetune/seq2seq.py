"""Training an encoder and decoder (T5) with transformers' Seq2SeqTrainer and PEFT. Names torch, transformers, peft.

Always in float32: T5 overflows in float16.
"""

from collections.abc import Sequence
from pathlib import Path

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
    """Load the base and put a LoRA adapter on it. Raises UnsupportedError for 4 bit or layers that it has not."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSeq2SeqLM, set_seed

    if recipe.base.load_in_4bit:
        raise UnsupportedError(f"{base.name}: encoder and decoder are trained in float32; set base.load_in_4bit=false.")
    model = AutoModelForSeq2SeqLM.from_pretrained(
        base.folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    check_targets(model, recipe)
    set_seed(recipe.training.seed)
    checkpointing = needs_checkpointing(model, recipe, longest_tokens)
    if checkpointing:
        model.enable_input_require_grads()
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            target_modules=list(recipe.lora.targets),
            use_rslora=recipe.lora.rslora,
        ),
    )
    return Trainable(adapted, pad_id, checkpointing, seq2seq=True)


def train(trainable: Trainable, examples: Sequence[Example], recipe: Recipe, on_step: OnStep, work: Path) -> None:
    """Run the optimisation, as `finetune.trainer.train` does."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    arguments = Seq2SeqTrainingArguments(**trainer_arguments(trainable, recipe, work))
    counting_trainer(Seq2SeqTrainer, trainable, examples, arguments, on_step).train()
