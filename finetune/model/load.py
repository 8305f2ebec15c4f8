"""Which way a base model is loaded for training: a decoder or an encoder and decoder."""

import json
import math
from collections.abc import Sequence
from typing import Any

from finetune.config.schema import Recipe
from finetune.kernels.compile_layers import compile_layers, decide
from finetune.kernels.fused_lora import fuse
from finetune.model import decoder
from finetune.model import encoder_decoder as seq2seq
from finetune.model.distributed import ALONE, Processes, shard
from finetune.model.loss import Flat, choose
from finetune.model.trainable import Trainable, out_of_memory, release_memory
from finetune.tokens.tokenize import Example, token_count
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base


def is_seq2seq(base: Base) -> bool:
    """True for a model with an encoder that reads the prompt."""
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("is_encoder_decoder"))


def import_first(base: Base) -> None:
    """Import what patches other libraries, before anything imports those."""
    if not is_seq2seq(base):
        decoder.import_unsloth()


def load_trainable(
    base: Base, recipe: Recipe, pad_id: int, examples: Sequence[Example], processes: Processes = ALONE
) -> Trainable:
    """The base with a fresh adapter, for these rows. Raises UnsupportedError for what cannot be trained so."""
    try:
        return _load(base, recipe, pad_id, examples, processes)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UnsupportedError(
            f"out of memory while {base.name} is loaded. Set base.load_in_4bit=true, or choose a smaller base."
        ) from error


def _load(base: Base, recipe: Recipe, pad_id: int, examples: Sequence[Example], processes: Processes) -> Trainable:
    kind = seq2seq if is_seq2seq(base) else decoder
    longest = max(len(example.input_ids) for example in examples)
    model, checkpointing = kind.load_model(base, recipe, longest)
    beginning = None
    if recipe.lora.changes_base:
        beginning = {name: each.detach().cpu().clone() for name, each in model.named_parameters() if each.requires_grad}
    release_memory()  # what reading and quantising the weights left behind
    forward = choose(model, pad_id, examples)
    compiled = False
    if isinstance(forward, Flat):
        as_is = checkpointing or processes.sharded
        compiled = not as_is and decide(recipe.training.compile, _flop(model, recipe, examples))
        fuse(model)
        if compiled:
            compile_layers(forward.body)
    if processes.sharded:
        shard(model)
    return Trainable(model, forward, checkpointing, compiled, processes, beginning)


def _flop(model: Any, recipe: Recipe, examples: Sequence[Example]) -> float:
    """Floating-point operations of a run: 2 a weight and token forwards, and 2 backwards."""
    weights = sum(each.numel() for each in model.parameters())
    tokens = sum(token_count(example) for example in examples)
    per_step = recipe.training.batch_size * recipe.training.accumulation
    steps_per_epoch = math.ceil(len(examples) / per_step)
    epochs = recipe.training.total_steps(steps_per_epoch) / steps_per_epoch
    return float(4 * weights * tokens * epochs)
