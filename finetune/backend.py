"""Which way a base model is loaded for training: a decoder or an encoder and decoder."""

import json
from collections.abc import Sequence

from finetune import decoder, seq2seq
from finetune.forward import choose
from finetune.labels import Example
from finetune.recipe import Recipe
from finetune.trainable import Trainable, release_memory, steady_memory
from gladstone.basemodel import Base


def is_seq2seq(base: Base) -> bool:
    """True for a model with an encoder that reads the prompt."""
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("is_encoder_decoder"))


def import_first(base: Base) -> None:
    """Import what patches other libraries, before anything imports those."""
    if not is_seq2seq(base):
        decoder.import_unsloth()


def load_trainable(base: Base, recipe: Recipe, pad_id: int, examples: Sequence[Example]) -> Trainable:
    """The base with a fresh adapter, for these rows. Raises UnsupportedError for what cannot be trained so."""
    steady_memory()
    kind = seq2seq if is_seq2seq(base) else decoder
    longest = max(len(example.input_ids) for example in examples)
    model, checkpointing = kind.load_model(base, recipe, longest)
    release_memory()  # what loading and quantising left behind
    return Trainable(model, choose(model, pad_id, examples), checkpointing)
