"""Checks of quantised files: each against the intermediate on held-out rows, token by token.

Names torch.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.proof.check import Check
from export.proof.divergence import log_softmax
from export.proof.heldout import HeldOut, HeldOutRows, mean_of_rows, pieces
from export.proof.reading import Batch, Logits, Reader, read_all
from export.proof.reading_results import ReadingResults
from export.proof.trained import Trained
from gladstone.commands.progress import Progress
from gladstone.gguf.header import read_header
from gladstone.llamacpp.model import Model

QUANTISERS_KEYS = {
    "general.file_type",
    "general.quantization_version",
    "split.no",
    "split.count",
    "split.tensors.count",
}


def check_header(path: Path, intermediate: Path) -> Check:
    """Check that a quantised file has the vocabulary, special tokens and template of the intermediate."""
    ours, theirs = read_header(path).metadata, read_header(intermediate).metadata
    differing = sorted(
        key for key in (ours.keys() | theirs.keys()) - QUANTISERS_KEYS if ours.get(key) != theirs.get(key)
    )
    kind = intermediate.stem.rpartition("-")[2].upper()
    detail = (
        f"metadata equal to the {kind}'s" if not differing else f"differs from the {kind} in {', '.join(differing)}"
    )
    return Check("metadata", not differing, detail, {"keys": len(ours)}, "Export again: the header was changed.")


def check_quantised(
    intermediate: Path,
    files: Mapping[str, Path],
    trained: Trained,
    progress: Progress,
    results: ReadingResults | None = None,
) -> tuple[dict[str, Check], HeldOut]:
    """KL, top-1 agreement and perplexity ratio of each file, and the held-out loss of the intermediate.

    Without held-out rows the answers are those of training rows, as the checks say. A file fails if its logits contain
    NaN or Inf. The intermediate is evaluated here unless its proof left the log-probabilities in `results`. All
    evaluated files are open at the same time.
    """
    kept = results.kept if results else None
    if results and results.held_out and not files:
        return {}, results.held_out
    with ExitStack() as stack:
        paths = [*files.values()] if kept else [intermediate, *files.values()]
        models = [stack.enter_context(Model(path)) for path in paths]
        rows = HeldOutRows(models[0], trained)
        costs = [_Cost(rows) for _ in files]
        nats = np.zeros(len(rows.texts))
        readers = [stack.enter_context(Reader(model, rows.plan)) for model in models]
        for batch, logits in read_all(readers, rows.plan, progress):
            known = kept.rows(batch) if kept else None
            for piece in pieces(len(batch.tokens)):
                likely = log_softmax(logits[0][piece], "float32") if known is None else known[piece]
                rows.add(nats, batch, piece, likely)
                spread = _Reference(likely)
                for cost, other in zip(costs, logits if kept else logits[1:], strict=True):
                    cost.add(batch, piece, log_softmax(other[piece], "float32"), spread)
    held_out = HeldOut(tuple(nats.tolist()), rows.counts)
    return {
        name: cost.check(held_out, trained.which.words.answers) for name, cost in zip(files, costs, strict=True)
    }, held_out


class _Reference:
    """Reference distributions for several files."""

    def __init__(self, likely: Logits) -> None:
        """`likely` are log-probabilities (N, V)."""
        import torch  # on all cores

        self._likely = torch.from_numpy(likely)
        self._chances, self._best = self._likely.exp(), self._likely.argmax(1)

    def divergence(self, ours: Logits) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """KL (N,) in nats against log-probabilities (N, V), and whether the top tokens agree, (N,) bool."""
        import torch

        file = torch.from_numpy(ours)
        kl = (self._chances * (self._likely - file)).sum(1)
        return kl.numpy(), (file.argmax(1) == self._best).numpy()


class _Cost:
    """Accumulates the differences of one quantised file."""

    def __init__(self, rows: HeldOutRows) -> None:
        self._rows = rows
        self._kl: list[npt.NDArray[np.float32]] = []
        self._same: list[npt.NDArray[np.bool_]] = []
        self._nats = np.zeros(len(rows.texts))  # of each answer

    def add(self, batch: Batch, piece: slice, ours: Logits, reference: _Reference) -> None:
        """Log-probabilities (N, V) of the file for a part of a batch, against those of the intermediate."""
        kl, same = reference.divergence(ours)
        # the shared prefix was computed once and counts for every text
        times = len(self._rows.texts) if batch.texts[0] < 0 else 1
        self._kl.append(np.tile(kl, times))
        self._same.append(np.tile(same, times))
        self._rows.add(self._nats, batch, piece, ours)

    def check(self, reference: HeldOut, answers: str) -> Check:
        kl, same = np.concatenate(self._kl), np.concatenate(self._same)
        gaps = [ours - theirs for ours, theirs in zip(self._nats, reference.nats, strict=True)]
        ratio, low, high = (math.exp(min(each, 700.0)) for each in mean_of_rows(gaps, reference.tokens))
        passed = bool(np.isfinite(kl).all())
        measured = {"mean_kl_nats": float(kl.mean()), "p999_kl_nats": float(np.quantile(kl, 0.999)),
                    "top1_agreement": float(same.mean()), "perplexity_ratio": ratio,
                    "perplexity_ratio_interval": [low, high], "tokens": len(kl), "rows": len(self._nats)}  # fmt: skip
        detail = (
            f"KL {measured['mean_kl_nats']:.1e} nats (99.9 % below {measured['p999_kl_nats']:.1e}), "
            f"top-1 {same.mean():.1%}, perplexity × {ratio:.3f} [{low:.3f}, {high:.3f}] on {len(self._nats)} {answers}"
        )
        if not passed:
            detail = "its logits contain NaN or Inf"
        return Check(
            "against the intermediate",
            passed,
            detail,
            measured,
            "Choose another type: this one does not suit the model.",
        )
