"""Which way a base model is trained: a decoder by `trainer`, an encoder and decoder by `seq2seq`; both alike to use."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from finetune import seq2seq, trainer
from finetune.labels import Example
from finetune.recipe import Recipe
from finetune.trainable import OnStep, Trainable
from gladstone.basemodel import Base


class Backend(Protocol):
    """How a model is loaded and trained."""

    def load_trainable(self, base: Base, recipe: Recipe, pad_id: int, longest_tokens: int) -> Trainable:
        """The base with a fresh adapter."""

    def train(
        self, trainable: Trainable, examples: Sequence[Example], recipe: Recipe, on_step: OnStep, work: Path
    ) -> None:
        """Train the adapter."""


def is_seq2seq(base: Base) -> bool:
    """True for a model with an encoder that reads the prompt."""
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("is_encoder_decoder"))


def backend_of(base: Base) -> Backend:
    """The module that trains a base."""
    return seq2seq if is_seq2seq(base) else trainer
