"""What one reading of a file leaves for the proofs that come after it: its loss, and what others are held against."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.proof.check import Check
from export.proof.heldout import HeldOut
from export.proof.reading import Batch, Logits, Text
from gladstone.machine.host import available_memory_bytes

KEPT_BYTES, KEPT_SHARE = 2 << 30, 8  # at most so much is kept, and no more than an eighth of the memory that is there


class KeptLogProbs:
    """Log-probabilities (T, V) of a file after every token of the measured rows."""

    def __init__(self, opening: Logits) -> None:
        """`opening` are those of the tokens that all rows begin with."""
        self._opening = opening
        self._texts: list[Logits] = []

    def add(self, likely: Logits) -> None:
        """Those of the next row behind the opening."""
        self._texts.append(likely)

    def rows(self, batch: Batch) -> Logits:
        """Those (N, V) of a batch of the rows, however they are cut."""
        found = []
        for number in dict.fromkeys(batch.texts.tolist()):
            positions = batch.positions[batch.texts == number]
            behind = positions >= len(self._opening)
            found.append(self._opening[positions[~behind]])
            found.append(self._texts[max(number, 0)][positions[behind] - len(self._opening)])
        return np.concatenate(found)


@dataclass
class ReadingResults:
    """Filled by the proof of a file: the loss of the held-out answers, and what is kept where there is room.

    `vocabularies` are the checks of those that were proven before against the same tokenizer, by what they are.
    """

    keeps: bool = False
    held_out: HeldOut | None = None
    kept: KeptLogProbs | None = None
    vocabularies: dict[str, list[Check]] = field(default_factory=dict)


def fits(texts: Sequence[Text], vocabulary: int) -> bool:
    """Whether the log-probabilities of all tokens of the texts can be kept."""
    needed = 4 * vocabulary * sum(len(text.tokens) for text in texts)
    return needed <= min(KEPT_BYTES, available_memory_bytes() // KEPT_SHARE)
