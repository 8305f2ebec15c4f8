"""How well a file predicts the held-out answers: nats a token, with an interval over rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.proof.divergence import log_softmax
from export.proof.reading import Batch, Logits, Reader, batch_tokens, plan_reading, read_all
from export.proof.rows import prompt_text, proof_rows
from export.proof.trained import Trained
from gladstone.commands.progress import Progress
from gladstone.confidence import Z
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model

ROWS_AT_ONCE = 32  # of logits in float32


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
    with Model(path, loras=loras) as model:
        rows = HeldOutRows(model, trained)
        nats = np.zeros(len(rows.texts))
        with Reader(model, rows.plan) as reader:
            for batch, (logits,) in read_all([reader], rows.plan, progress):
                for piece in pieces(len(logits)):
                    rows.add(nats, batch, piece, log_softmax(logits[piece], "float32"))
    return HeldOut(tuple(nats.tolist()), rows.counts)


class HeldOutRows:
    """The held-out rows as texts, and in which order they are read."""

    def __init__(self, model: Model, trained: Trained) -> None:
        rows = [row for row in proof_rows(trained) if row.answer]
        self.texts = [prompt_text(model, row.prompt, row.answer) for row in rows]
        self.counts = tuple(len(text.tokens) - text.answer_at for text in self.texts)
        self.plan = plan_reading(self.texts, batch_tokens(model, self.texts))
        longest = max(len(text.tokens) for text in self.texts)
        self._next = np.full((len(self.texts), longest), -1)  # the answer's token that follows, if one does
        for number, text in enumerate(self.texts):
            self._next[number, text.answer_at - 1 : len(text.tokens) - 1] = text.tokens[text.answer_at :]

    def add(self, nats: npt.NDArray[np.float64], batch: Batch, piece: slice, likely: Logits) -> None:
        """Add -log p of the answer tokens to `nats`, from log-probabilities (N, V) of a part of a batch."""
        if batch.texts[0] < 0:
            return  # the opening of all prompts
        texts = batch.texts[piece]
        following = self._next[texts, batch.positions[piece]]
        rows = np.flatnonzero(following >= 0)
        np.subtract.at(nats, texts[rows], likely[rows, following[rows]].astype(np.float64))


def pieces(count: int) -> list[slice]:
    """Slices of logits that fit the processor's cache."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def mean_of_rows(sums: Iterable[float], counts: Iterable[int]) -> tuple[float, float, float]:
    """Mean per token of sums over rows, with its 95 % interval, in the unit of the sums.

    Rows, not tokens, are the independent samples.
    """
    ours, tokens = np.array(list(sums)), np.array(list(counts))
    mean, rows = float(ours.sum() / tokens.sum()), len(ours)
    spread = float(np.sqrt(((ours - mean * tokens) ** 2).sum() * rows / max(rows - 1, 1)))
    error = Z * spread / float(tokens.sum()) if rows > 1 else math.inf
    return mean, mean - error, mean + error


def describe_mean(found: Sequence[float], digits: int = 3) -> str:
    """A mean with its interval as text."""
    mean, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{mean} [{low}, {high}]" if math.isfinite(found[1]) else mean
