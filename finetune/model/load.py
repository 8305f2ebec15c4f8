"""Loads a base model for training: a decoder, or an encoder and decoder."""

from collections.abc import Sequence
from typing import Any

from finetune.config.schema import Recipe
from finetune.kernels.compile_layers import compile_layers, should_compile
from finetune.kernels.fused_lora import fuse_lora_layers
from finetune.model import decoder, encoder_decoder
from finetune.model.distributed import SINGLE_PROCESS, DistributedContext
from finetune.model.loss import PackedForward, choose_forward
from finetune.model.out_of_memory import out_of_memory
from finetune.model.sharding import shard_frozen_weights
from finetune.model.trainable import Trainable, release_memory
from finetune.tokens.examples import Example, token_count
from finetune.tokens.step_schedule import StepSchedule
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base


def import_first(base: Base) -> None:
    """Import Unsloth, if the base needs it, before the libraries that it patches are imported."""
    if not base.is_encoder_decoder:
        decoder.import_unsloth()


def load_trainable(
    base: Base, recipe: Recipe, pad_id: int, examples: Sequence[Example], context: DistributedContext = SINGLE_PROCESS
) -> Trainable:
    """Load the base with a fresh adapter, for training on these rows.

    Raises UnsupportedError if the recipe does not fit the model, or memory does not suffice.
    """
    try:
        return _load(base, recipe, pad_id, examples, context)
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise UnsupportedError(
            f"out of memory while loading {base.name}. Set base.load_in_4bit=true, or choose a smaller base."
        ) from error


def _load(
    base: Base, recipe: Recipe, pad_id: int, examples: Sequence[Example], context: DistributedContext
) -> Trainable:
    loader = encoder_decoder if base.is_encoder_decoder else decoder
    longest = max(len(example.input_ids) for example in examples)
    model, checkpointing = loader.load_model(base, recipe, longest)
    initial_adapter = None
    if recipe.lora.changes_base:
        initial_adapter = {
            name: parameter.detach().cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
    release_memory()  # left over from reading and quantising the weights
    forward = choose_forward(model, pad_id, examples)
    compiled = False
    if isinstance(forward, PackedForward):
        as_is = checkpointing or context.sharded
        compiled = not as_is and should_compile(recipe.training.compile, *_size(model, recipe, examples))
        fuse_lora_layers(model)
        if compiled:
            compile_layers(forward.body)
    if context.sharded:
        shard_frozen_weights(model)
    trainable = Trainable(model, forward, checkpointing, compiled, context, initial_adapter)
    trainable.train()
    return trainable


def _size(model: Any, recipe: Recipe, examples: Sequence[Example]) -> tuple[int, float]:
    """Return the number of parameters and the tokens of the whole run."""
    schedule = StepSchedule(recipe.training, [token_count(example) for example in examples], padded=False)
    return sum(parameter.numel() for parameter in model.parameters()), schedule.tokens_trained
