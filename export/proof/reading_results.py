"""What one pass over a file leaves for later proofs: its held-out loss, and its log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.proof.check import Check
from export.proof.heldout import HeldOut
from export.proof.reading import Batch, Logits, Text
from gladstone.machine.host import available_memory_bytes

KEPT_BYTES, KEPT_SHARE = 2 << 30, 8  # kept at most: this, and an eighth of the available memory


class KeptLogProbs:
    """Log-probabilities (T, V) float32 of a file after every token of the measured rows."""

    def __init__(self, opening: Logits) -> None:
        """`opening` (T, V) belongs to the shared prefix of all rows."""
        self._opening = opening
        self._texts: list[Logits] = []

    def add(self, likely: Logits) -> None:
        """Add those of the next row, after the shared prefix."""
        self._texts.append(likely)

    def rows(self, batch: Batch) -> Logits:
        """Log-probabilities (N, V) for a batch, however the rows are batched."""
        found = []
        for number in dict.fromkeys(batch.texts.tolist()):
            positions = batch.positions[batch.texts == number]
            behind = positions >= len(self._opening)
            found.append(self._opening[positions[~behind]])
            found.append(self._texts[max(number, 0)][positions[behind] - len(self._opening)])
        return np.concatenate(found)


@dataclass
class ReadingResults:
    """Filled by the proof of a file: the held-out loss and, where memory allows, the log-probabilities.

    `vocabularies` holds the checks of vocabularies already compared with the same tokenizer, by their hash.
    """

    keeps: bool = False
    held_out: HeldOut | None = None
    kept: KeptLogProbs | None = None
    vocabularies: dict[str, list[Check]] = field(default_factory=dict)


def fits(texts: Sequence[Text], vocabulary: int) -> bool:
    """True if the log-probabilities of all tokens of the texts fit in memory."""
    needed = 4 * vocabulary * sum(len(text.tokens) for text in texts)
    return needed <= min(KEPT_BYTES, available_memory_bytes() // KEPT_SHARE)
