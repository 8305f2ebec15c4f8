"""What quantising cost: each quantised file against the one it was made of, on held-out rows, token by token."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.proof.answers import CONTEXT_TOKENS, Logits
from export.proof.heldout import HeldOut, log_probabilities, mean_of_rows, nats_of, scored, sequences_of
from export.proof.point import Point
from export.proof.trained import Trained
from gladstone.context import Context
from gladstone.gguf import read_header
from gladstone.llama import Model
from gladstone.progress import Progress

QUANTISERS_KEYS = {
    "general.file_type",
    "general.quantization_version",
    "split.no",
    "split.count",
    "split.tensors.count",
}


def check_header(path: Path, carrier: Path) -> Point:
    """A quantised file must carry the vocabulary, special tokens and template of what it was made of unchanged."""
    ours, theirs = read_header(path).metadata, read_header(carrier).metadata
    differing = sorted(
        key for key in (ours.keys() | theirs.keys()) - QUANTISERS_KEYS if ours.get(key) != theirs.get(key)
    )
    kind = carrier.stem.rpartition("-")[2].upper()
    detail = (
        f"metadata equal to the {kind}'s" if not differing else f"differs from the {kind} in {', '.join(differing)}"
    )
    return Point("metadata", not differing, detail, {"keys": len(ours)}, "Export again: the header was changed.")


def check_quantised(
    carrier: Path, files: Mapping[str, Path], trained: Trained, progress: Progress
) -> tuple[dict[str, Point], HeldOut]:
    """Of each file KL, top-1 agreement and perplexity ratio, and how well the carrier predicts the answers.

    A file fails if it computes what is no number. All are open at a time, so that no logits are stored.
    """
    sequences = sequences_of(trained)
    whole_nats = []
    costs = {name: _Cost() for name in files}
    with ExitStack() as stack:
        opened = {}
        for name, path in {"": carrier, **files}.items():
            model = stack.enter_context(Model(path))
            opened[name] = model, stack.enter_context(Context(model, CONTEXT_TOKENS))
        for number, (prompt, answer) in enumerate(sequences, 1):
            whole = log_probabilities(*opened[""], prompt, answer)
            whole_nats.append(nats_of(whole, answer))
            likely = np.exp(whole)
            for name, cost in costs.items():
                cost.add(log_probabilities(*opened[name], prompt, answer), whole, likely, answer)
            progress.update(number / len(sequences))
    held_out = HeldOut(tuple(whole_nats), tuple(len(answer) for _, answer in sequences))
    return {name: cost.point() for name, cost in costs.items()}, held_out


class _Cost:
    """Collects how a quantised file differs."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float32]] = []
        self._same: list[npt.NDArray[np.bool_]] = []
        self._nats: list[npt.NDArray[np.float32]] = []  # of each answer's token, more than before

    def add(self, ours: Logits, whole: Logits, likely: Logits, answer: list[int]) -> None:
        """Log-probabilities (T, V) of the file and of the whole, whose probabilities are `likely`."""
        self._kl.append((likely * (whole - ours)).sum(axis=1))
        self._same.append(ours.argmax(axis=1) == whole.argmax(axis=1))
        self._nats.append(scored(whole, answer) - scored(ours, answer))

    def point(self) -> Point:
        kl, same = np.concatenate(self._kl), np.concatenate(self._same)
        ratio, low, high = self._perplexity_ratio()
        passed = bool(np.isfinite(kl).all())
        measured = {"mean_kl_nats": float(kl.mean()), "p999_kl_nats": float(np.quantile(kl, 0.999)),
                    "top1_agreement": float(same.mean()), "perplexity_ratio": ratio,
                    "perplexity_ratio_interval": [low, high], "tokens": len(kl), "rows": len(self._nats)}  # fmt: skip
        detail = (
            f"KL {measured['mean_kl_nats']:.1e} nats (99.9 % below {measured['p999_kl_nats']:.1e}), "
            f"top-1 {same.mean():.1%}, perplexity × {ratio:.3f} [{low:.3f}, {high:.3f}] on {len(self._nats)} answers"
        )
        if not passed:
            detail = "its logits are no numbers"
        return Point(
            "against the whole", passed, detail, measured, "Choose another type: this one does not suit the model."
        )

    def _perplexity_ratio(self) -> tuple[float, float, float]:
        """With its 95 % interval."""
        found = mean_of_rows([float(each.sum()) for each in self._nats], [len(each) for each in self._nats])
        ratio, low, high = (math.exp(min(each, 700.0)) for each in found)
        return ratio, low, high
