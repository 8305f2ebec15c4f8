"""Character n-grams of the text that varies between rows, and MinHash sketches that find similar rows (Broder 1997).

Characters, not words: a question of four words has no word 5-gram, while one changed word affects few character grams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

GRAM, RUN = 5, 12  # characters: of the grams compared, and of the runs counted to find common text
MANY_ROWS, MANY_SHARE = 5, 0.02  # text in at least this many rows, and this share of them, is common
COUNTERS = 1 << 22
MAX_HASHES = 128
RECALL = 0.995  # of pairs exactly at the threshold; more similar pairs are found more reliably
_PAD = "\n" * RUN  # between turns and rows, so that no run spans two and a short turn is a run of its own
_MULTIPLIER, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
Hashes = NDArray[np.uint64]


def hash_windows(codes: Hashes, size: int) -> Hashes:
    """Return a 64-bit hash of the `size` characters from each position: (N,) uint64 → (N - size + 1,) uint64."""
    count = len(codes) - size + 1
    hashes = codes[:count].copy()
    for offset in range(1, size):
        hashes *= _MULTIPLIER
        hashes += codes[offset : count + offset]
    for _ in range(2):
        hashes ^= hashes >> np.uint64(32)
        hashes *= _MIX
    return hashes ^ (hashes >> np.uint64(32))


def hash_positions(codes: NDArray[np.uint32], positions: NDArray[np.int64], size: int) -> Hashes:
    """Return a 64-bit hash of the `size` characters from each given position: (P,) uint64."""
    hashes = codes[positions].astype(np.uint64)
    for offset in range(1, size):
        hashes *= _MULTIPLIER
        hashes += codes[positions + offset]
    for _ in range(2):
        hashes ^= hashes >> np.uint64(32)
        hashes *= _MIX
    return hashes ^ (hashes >> np.uint64(32))


class Characters:
    """The characters of some rows in one array; each row is a sequence of turn keys."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        texts = [_PAD + _PAD.join(turns) for turns in rows]
        self.codes = np.frombuffer(("".join(texts) + _PAD).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        self.starts = np.cumsum([0, *map(len, texts)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def written(self) -> NDArray[np.bool_]:
        """True for characters, False for padding: (N,) bool."""
        return np.not_equal(self.codes, np.uint64(ord("\n")))

    @cached_property
    def runs(self) -> Hashes:
        """Hashes of the runs that begin at each position: (N - RUN + 1,) uint64."""
        return hash_windows(self.codes, RUN)

    def grams(self, wanted: NDArray[np.bool_]) -> list[Hashes]:
        """Return each row's grams with a wanted character; a row without any has one gram, its whole text."""
        hashes = hash_windows(self.codes, GRAM)
        kept = _any_within(wanted, GRAM)
        parts = []
        for begin, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            place = slice(max(0, begin), end)
            grams = hashes[place][kept[place]]
            parts.append(grams if len(grams) else _whole(self.codes[place]))
        return parts


def _any_within(flags: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """True where any of the `size` flags from that position is set: (N,) bool → (N - size + 1,) bool."""
    sums = np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))
    return np.greater(sums[size:], sums[:-size])


def _whole(codes: Hashes) -> Hashes:
    positions = np.arange(1, len(codes) + 1, dtype=np.uint64)
    value: Hashes = np.bitwise_xor.reduce((codes + positions) * _MULTIPLIER * positions, keepdims=True)
    return (value ^ (value >> np.uint64(29))) * _MIX


class CommonText:
    """Text that many rows share: an instruction, a template, a system prompt, a label. Memory: 8 MiB."""

    def __init__(self) -> None:
        self._counters = np.zeros(COUNTERS, dtype=np.uint16)
        self._rows = 0

    def count(self, characters: Characters) -> None:
        """Count the rows that contain each run of characters; at most 65,535 rows."""
        buckets = (characters.runs % np.uint64(COUNTERS)).astype(np.int64)
        owners = np.repeat(np.arange(len(characters)), np.diff(characters.starts))[: len(buckets)]
        owners = np.pad(owners, (0, len(buckets) - len(owners)), constant_values=max(0, len(characters) - 1))
        ordered = np.sort(owners * COUNTERS + buckets)
        once = ordered[np.diff(ordered, prepend=-1) > 0] % COUNTERS
        np.add.at(self._counters, once, np.uint16(1))  # of the same type: 20 times faster
        self._rows += len(characters)

    def varying(self, characters: Characters) -> NDArray[np.bool_]:
        """True for characters that belong to no common run: (N,) bool."""
        many = max(MANY_ROWS, int(MANY_SHARE * self._rows))
        common = self._counters[(characters.runs % np.uint64(COUNTERS)).astype(np.int64)] >= many
        padded = np.concatenate((np.zeros(RUN - 1, dtype=bool), common, np.zeros(RUN - 1, dtype=bool)))
        return characters.written & ~_any_within(padded, RUN)

    def grams(self, rows: Sequence[Sequence[str]]) -> list[Hashes]:
        """Return the grams of the varying text of each row; at least one per row."""
        characters = Characters(rows)
        return characters.grams(self.varying(characters))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard similarity of two sorted arrays of unique hashes."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


@dataclass(frozen=True)
class Sketcher:
    """Maps texts to LSH band keys: texts that share one are candidates.

    Two texts of similarity s share one of the `bands`, each of `rows` minima, with probability 1 - (1 - s^rows)^bands.
    """

    similarity: float

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Number of bands, and minima per band: as many minima as the recall permits, so that candidates are few."""
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
        drawn[0] |= 1  # multiplying by an odd factor permutes the 32-bit integers
        return drawn

    @cached_property
    def most_differing_bits(self) -> int:
        """Differing bits of two texts exactly at the threshold, four standard deviations above the mean.

        A bit agrees if the minima do, and otherwise by chance (Li and König 2010): with probability (1 + s) / 2.
        """
        bands, rows = self.shape
        differs = (1 - self.similarity) / 2
        return int(np.ceil(bands * rows * differs + 4 * np.sqrt(bands * rows * differs * (1 - differs))))

    def sketch(self, grams: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the band keys of texts, (bands, texts) uint64, and one bit of each minimum, (texts, 2) uint64."""
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
