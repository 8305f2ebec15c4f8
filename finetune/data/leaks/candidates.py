"""Finds candidate test rows for training rows: an inverted index of rare grams, searched in batches.

A text with an error in every tenth character still has two thirds of its 4-grams. All grams of a question are searched;
of answers and whole rows a sample is, selected by hash so that it is the same on both sides.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.duplicates.grams import Hashes, hash_positions

CHUNK = 512  # texts
OWNER_BITS = 20
FREQUENT_ROWS, FREQUENT_SHARE = 40, 0.02  # a gram in more test rows than this is not indexed
_BREAK = "\n"


class GramIndex:
    """An index of texts by their grams of `size` characters. Memory: 24 bytes per gram.

    `sampled`: one in this many of the grams that begin a word; None: all grams at all positions.
    """

    def __init__(self, texts: Sequence[str], size: int, sampled: int | None = None) -> None:
        self._size, self._sampled, self._count = size, sampled, len(texts)
        chunks = [self._grams(texts[begin : begin + CHUNK]) for begin in range(0, len(texts), CHUNK)]
        grams = np.concatenate([np.empty(0, dtype=np.uint64), *(hashes for hashes, _ in chunks)])
        owners = np.concatenate(
            [np.empty(0, dtype=np.int64), *(part + number * CHUNK for number, (_, part) in enumerate(chunks))]
        )
        order = np.argsort(grams, kind="stable")
        grams, owners = grams[order], owners[order]
        starts = np.flatnonzero(np.diff(grams, prepend=~grams[:1]))
        times = np.diff(starts, append=len(grams))
        kept = times <= max(FREQUENT_ROWS, int(FREQUENT_SHARE * len(texts)))
        self._owners = owners[np.repeat(kept, times)]
        self._keys, times = grams[starts][kept], times[kept]
        self._starts = np.concatenate(([0], np.cumsum(times)))
        self._weights = np.log1p(len(texts) / np.maximum(times, 1))
        self._totals = np.bincount(self._owners, np.repeat(self._weights, times), minlength=max(1, len(texts)))

    def _grams(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """Return the distinct pairs of gram hash (44 bits) and text number, by text: (P,) uint64 and (P,) int64."""
        padded = [f" {text} {_BREAK * self._size}" for text in texts]
        codes = np.frombuffer("".join(padded).encode("utf-32-le", "replace"), dtype="<u4")
        if self._sampled is None:
            positions = np.arange(len(codes) - self._size + 1)
        else:
            positions = np.flatnonzero(codes[: len(codes) - self._size + 1] == np.uint32(ord(" ")))
        positions = positions[
            (codes[positions] != np.uint32(ord(_BREAK))) & (codes[positions + self._size - 1] != np.uint32(ord(_BREAK)))
        ]
        hashes = hash_positions(codes, positions, self._size)
        owners = np.searchsorted(np.cumsum([len(text) for text in padded]), positions, side="right").astype(np.uint64)
        if self._sampled is not None:
            chosen = hashes % np.uint64(self._sampled) == 0
            hashes, owners = hashes[chosen], owners[chosen]
        pairs = np.sort(owners << np.uint64(64 - OWNER_BITS) | hashes >> np.uint64(OWNER_BITS))
        pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=~pairs[:1]))]
        return pairs & np.uint64((1 << 64 - OWNER_BITS) - 1), (pairs >> np.uint64(64 - OWNER_BITS)).astype(np.int64)

    def search(self, texts: Sequence[str], least: float, most: int) -> list[list[int]]:
        """For each text, return up to `most` indexed texts, best first, that share `least` of their gram weight."""
        results: list[list[int]] = [[] for _ in texts]
        if not len(self._keys):
            return results
        grams, rows = self._grams(texts)
        positions = np.minimum(np.searchsorted(self._keys, grams), len(self._keys) - 1)
        hit = self._keys[positions] == grams
        positions, rows = positions[hit], rows[hit]
        counts = self._starts[positions + 1] - self._starts[positions]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self._owners[np.repeat(self._starts[positions], counts) + offsets]
        pairs = np.repeat(rows, counts) * self._count + owners
        if not len(pairs):
            return results
        order = np.argsort(pairs)
        pairs = pairs[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        weights = np.repeat(self._weights[positions], counts)[order]
        pairs = pairs[starts]
        shares = np.add.reduceat(weights, starts) / self._totals[pairs % self._count]
        pairs, shares = pairs[shares >= least], shares[shares >= least]
        for pair in pairs[np.argsort(-shares, kind="stable")].tolist():
            row, test = divmod(pair, self._count)
            if len(results[row]) < most:
                results[row].append(test)
        return results
