"""How well a file predicts the held-out answers: nats a token, with an interval over rows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.proof.answers import ANSWER_TOKENS, CONTEXT_TOKENS, PROMPTS, Logits, begin, log_softmax
from export.proof.trained import Trained
from gladstone.context import Context
from gladstone.llama import Model
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
            nats.append(nats_of(log_probabilities(model, context, prompt, answer), answer))
            tokens.append(len(answer))
            progress.update(number / len(sequences))
    return HeldOut(tuple(nats), tuple(tokens))


def sequences_of(trained: Trained) -> list[tuple[list[int], list[int]]]:
    """Prompts with the answers of the held-out rows; a plain text is cut into the two."""
    found = []
    for row in trained.rows:
        prompt = trained.prompt(row, ANSWER_TOKENS)
        answer = trained.tokenizer.encode(trained.answer_text(row))
        answer = answer[ANSWER_TOKENS if row.is_text else 0 :][: CONTEXT_TOKENS // 2]
        if answer and 0 < len(prompt) <= CONTEXT_TOKENS // 2 - ANSWER_TOKENS:
            found.append((prompt, answer))
    return found[:PROMPTS]


def log_probabilities(model: Model, context: Context, prompt: list[int], answer: list[int]) -> Logits:
    """Of every token (T, V) after each that is read; float32 is enough for what quantising changes."""
    found: Logits = log_softmax(np.stack(begin(model, context, prompt, answer)[0]), "float32")
    return found


def scored(likely: Logits, answer: Sequence[int]) -> npt.NDArray[np.float32]:
    """log p of each token of an answer, in log-probabilities (T, V) of a prompt with that answer."""
    before = np.arange(len(likely) - len(answer) - 1, len(likely) - 1)
    found: npt.NDArray[np.float32] = likely[before, np.array(answer)]
    return found


def nats_of(likely: Logits, answer: Sequence[int]) -> float:
    """-log p of the whole answer."""
    return -float(scored(likely, answer).sum(dtype=np.float64))


def mean_of_rows(sums: Iterable[float], counts: Iterable[int]) -> tuple[float, float, float]:
    """Mean over all tokens of what is summed over each row, with its 95 % interval.

    It is rows, not their tokens, that were drawn independently.
    """
    ours, tokens = np.array(list(sums)), np.array(list(counts))
    mean, rows = float(ours.sum() / tokens.sum()), len(ours)
    spread = float(np.sqrt(((ours - mean * tokens) ** 2).sum() * rows / max(rows - 1, 1)))
    error = 1.96 * spread / float(tokens.sum()) if rows > 1 else math.inf
    return mean, mean - error, mean + error


def told(found: Sequence[float], digits: int = 3) -> str:
    """A mean and its interval for people."""
    mean, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{mean} [{low}, {high}]" if math.isfinite(found[1]) else mean
