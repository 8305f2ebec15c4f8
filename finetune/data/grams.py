"""A text's 5-grams of characters, and the MinHash sketch by which similar texts are found (Broder 1997).

Characters, not words: a question of four words has no word 5-gram, and one changed word costs few of the grams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finetune.data.clean import words_key

GRAM = 5
MAX_HASHES = 128
RECALL = 0.995  # of pairs that are exactly as similar as asked for; more similar ones are found more surely
_MULTIPLIER, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


def gram_hashes(text: str) -> NDArray[np.uint64]:
    """A 64-bit hash for each 5-gram of the text's words, case and punctuation aside; at least one."""
    codes = np.frombuffer(words_key(text).ljust(GRAM).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    hashes = codes[: len(codes) - GRAM + 1].copy()
    for offset in range(1, GRAM):
        hashes *= _MULTIPLIER
        hashes += codes[offset : len(codes) - GRAM + 1 + offset]
    for _ in range(2):
        hashes ^= hashes >> np.uint64(32)
        hashes *= _MIX
    return hashes ^ (hashes >> np.uint64(32))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """The share of grams in common, of two sorted arrays without repetition."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


@dataclass(frozen=True)
class Sketcher:
    """Texts to band keys: texts that share one are candidates.

    Two texts of similarity s share one of the `bands`, each of `rows` minima, with probability 1 - (1 - s^rows)^bands.
    """

    similarity: float

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Bands, and minima in a band: the most minima that still give the recall, so that candidates are few."""
        fitting = []
        for rows in range(1, 33):
            missed = 1 - min(self.similarity, 0.99) ** rows
            bands = int(np.ceil(np.log(1 - RECALL) / np.log(missed)))
            if bands * rows <= MAX_HASHES:
                fitting.append((bands, rows))
        return fitting[-1]

    @cached_property
    def _permutations(self) -> NDArray[np.uint32]:
        bands, rows = self.shape
        drawn = np.random.default_rng(0x5EED).integers(0, 1 << 32, (2, bands * rows), dtype=np.uint32)
        drawn[0] |= 1  # an odd factor permutes the 32-bit numbers
        return drawn

    @cached_property
    def most_differing_bits(self) -> int:
        """Of the bits of two texts that are exactly similar enough, four standard deviations above the mean.

        A bit is equal where the minima are, and else by chance (Li and König 2010): with probability (1 + s) / 2.
        """
        bands, rows = self.shape
        differs = (1 - self.similarity) / 2
        return int(np.ceil(bands * rows * differs + 4 * np.sqrt(bands * rows * differs * (1 - differs))))

    def sketch(self, grams: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Band keys of some texts, (bands, texts), and a bit of each minimum, (texts, 2)."""
        bands, rows = self.shape
        starts = np.cumsum([0, *(len(hashes) for hashes in grams[:-1])])
        hashes = (np.concatenate(grams) >> np.uint64(32)).astype(np.uint32)
        keys = np.zeros((bands, len(grams)), dtype=np.uint64)
        low_bits = np.zeros((MAX_HASHES, len(grams)), dtype=np.uint8)
        factors, summands = self._permutations
        for index in range(bands * rows):
            minima = np.minimum.reduceat(hashes * factors[index] + summands[index], starts)
            band = keys[index // rows]
            band *= _MULTIPLIER
            band += minima
            low_bits[index] = minima & 1
            band ^= band >> np.uint64(29)
        return keys, np.ascontiguousarray(np.packbits(low_bits, axis=0).T).view(np.uint64)
