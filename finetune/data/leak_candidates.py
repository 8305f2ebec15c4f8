"""Which test rows a training row may have been made from: an inverted index of rare grams, searched in batches.

A text in which every tenth character is wrong still has two thirds of its 4-grams. The grams of a question are all
searched; of answers and of whole rows a sample is, the same on both sides, chosen by the grams' hashes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.grams import Hashes, hash_windows

FREQUENT_ROWS, FREQUENT_SHARE = 40, 0.02  # a gram that more test rows have is no hint
_BREAK = "\n"


class GramIndex:
    """Texts by their grams of `size` characters, one in `sampled` of them. Memory: 24 bytes a gram."""

    def __init__(self, texts: Sequence[str], size: int, sampled: int = 1) -> None:
        self._size, self._sampled, self._count = size, sampled, len(texts)
        grams, owners = self._grams(texts)
        keys, place, times = np.unique(grams, return_inverse=True, return_counts=True)
        most = max(FREQUENT_ROWS, int(FREQUENT_SHARE * len(texts)))
        self._keys = keys[times <= most]
        weights = np.log1p(len(texts) / np.maximum(times, 1))
        kept = times[place] <= most
        renumbered = np.cumsum(times <= most) - 1
        order = np.argsort(renumbered[place[kept]], kind="stable")
        self._owners = owners[kept][order]
        self._starts = np.concatenate(([0], np.cumsum(times[times <= most])))
        self._weights = weights[times <= most]
        self._totals = np.bincount(owners[kept], weights[place[kept]], minlength=max(1, len(texts)))

    def _grams(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """The hash of each gram and the text that has it, each pair once."""
        padded = [f" {text} {_BREAK * self._size}" for text in texts]
        codes = np.frombuffer("".join(padded).encode("utf-32-le", "replace"), dtype="<u4").astype(np.uint64)
        if len(codes) < self._size:
            return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        hashes = hash_windows(codes, self._size)
        owners = np.repeat(np.arange(len(texts)), [len(text) for text in padded])[: len(hashes)]
        ends = np.concatenate(([0], np.cumsum(codes == np.uint64(ord(_BREAK)))))
        inside = ends[self._size :] == ends[: -self._size]
        chosen = inside & (hashes % np.uint64(self._sampled) == 0) if self._sampled > 1 else inside
        hashes, owners = hashes[chosen], owners[chosen]
        order = np.lexsort((hashes, owners))
        hashes, owners = hashes[order], owners[order]
        first = np.ones(len(hashes), dtype=bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        return hashes[first], owners[first]

    def search(self, texts: Sequence[str], least: float, most: int) -> list[list[int]]:
        """For each text, the `most` indexed texts that share most of their weight with it, each at least `least`."""
        found: list[list[int]] = [[] for _ in texts]
        if not len(self._keys):
            return found
        grams, rows = self._grams(texts)
        places = np.minimum(np.searchsorted(self._keys, grams), len(self._keys) - 1)
        hit = self._keys[places] == grams
        places, rows = places[hit], rows[hit]
        counts = self._starts[places + 1] - self._starts[places]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self._owners[np.repeat(self._starts[places], counts) + offsets]
        pairs, place = np.unique(np.repeat(rows, counts) * self._count + owners, return_inverse=True)
        if not len(pairs):
            return found
        shares = np.bincount(place, np.repeat(self._weights[places], counts)) / self._totals[pairs % self._count]
        pairs, shares = pairs[shares >= least], shares[shares >= least]
        for pair in pairs[np.argsort(-shares, kind="stable")].tolist():
            row, test = divmod(pair, self._count)
            if len(found[row]) < most:
                found[row].append(test)
        return found
