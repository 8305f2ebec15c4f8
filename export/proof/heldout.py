"""How well a file predicts the held-out answers: nats a token, with an interval over rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.proof.answers import CONTEXT_TOKENS, begin, log_softmax
from export.proof.quantised import mean_of_rows, sequences_of
from export.proof.trained import Trained
from gladstone.llama import Context, Model
from gladstone.lora import Lora
from gladstone.progress import Progress


@dataclass(frozen=True)
class HeldOut:
    """-log p of each held-out answer and its number of tokens."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """Nats a token with its 95 % interval, and what they were measured on."""
        mean, low, high = mean_of_rows(self.nats, self.tokens)
        return {"nats_per_token": mean, "interval": [low, high], "rows": len(self.nats), "tokens": sum(self.tokens)}

    def less(self, other: "HeldOut") -> tuple[float, float, float]:
        """This one's nats a token less the other's, on the same rows, with its 95 % interval."""
        return mean_of_rows([ours - theirs for ours, theirs in zip(self.nats, other.nats, strict=True)], self.tokens)


def held_out_loss(path: Path, trained: Trained, progress: Progress, loras: Sequence[Lora] = ()) -> HeldOut:
    """Measured on up to 32 held-out rows, by llama.cpp."""
    nats, tokens = [], []
    sequences = sequences_of(trained)
    with Model(path, loras=loras) as model, Context(model, CONTEXT_TOKENS) as context:
        for number, (prompt, answer) in enumerate(sequences, 1):
            rows = begin(model, context, prompt, answer)[0][-len(answer) - 1 : -1]
            likely = log_softmax(np.stack(rows))
            nats.append(-float(likely[np.arange(len(answer)), answer].sum()))
            tokens.append(len(answer))
            progress.update(number / len(sequences))
    return HeldOut(tuple(nats), tuple(tokens))


def told(found: Sequence[float], digits: int = 3) -> str:
    """A mean and its interval for people."""
    mean, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{mean} [{low}, {high}]" if math.isfinite(found[1]) else mean
