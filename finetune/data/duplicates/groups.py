"""Groups of rows that repeat each other, or that stay in one set because they share an input or a context."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from finetune.data.duplicates.content_keys import RowContent

MIN_PASSAGE = 12  # characters; shorter ones, "Why?", "Thanks!", do not characterise a row
MIN_ANSWER = 40  # characters; shorter answers are labels
PASSAGES = 8  # the longest passages of a row are used


class Groups:
    """A union-find over rows; each group is identified by its earliest row."""

    def __init__(self, count: int) -> None:
        self.parents = array("q", range(count))

    def root(self, row: int) -> int:
        """Return the earliest row of a row's group."""
        parents = self.parents
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    def merge(self, one: int, other: int) -> None:
        """Merge the groups of two rows."""
        first, second = sorted((self.root(one), self.root(other)))
        self.parents[second] = first

    def merge_equal(self, keys: NDArray[np.uint64]) -> None:
        """Merge the groups of all rows with the same key."""
        for rows in rows_by_key(keys):
            for row in rows[1:]:
                self.merge(rows[0], row)

    def merge_up_to(self, largest: int, sets: Iterable[list[int]]) -> None:
        """Merge the groups of each set of rows in turn, unless the result would exceed `largest` rows."""
        sizes = Counter(self.root(row) for row in range(len(self.parents)))
        for rows in sets:
            for row in rows[1:]:
                one, other = self.root(rows[0]), self.root(row)
                if one != other and sizes[one] + sizes[other] <= largest:
                    self.merge(one, other)
                    sizes[min(one, other)] = sizes[one] + sizes[other]

    def copy(self) -> "Groups":
        """Return an independent copy."""
        copied = Groups(0)
        copied.parents = self.parents[:]
        return copied


def rows_by_key(keys: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Yield lists of at least two rows that share a key, in order."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    begins, ends = np.concatenate(([0], borders)), np.concatenate((borders, [len(keys)]))
    for index in np.flatnonzero(ends - begins > 1):
        yield order[begins[index] : ends[index]].tolist()


class Passages:
    """Hashes of each row's input turns, their longest passages, and its answer. Memory: 24 bytes per passage."""

    def __init__(self) -> None:
        self._hashes, self._rows, self._lengths = array("Q"), array("q"), array("L")

    def add(self, row: int, content: RowContent, hashed: Callable[[str], int]) -> None:
        """Add a row's passages."""
        whole = {" ".join(passages) for passages in content.prompt}
        parts = sorted({passage for passages in content.prompt for passage in passages} | whole, key=len, reverse=True)
        answer = " ".join(content.answer)
        for key in (*parts[:PASSAGES], *([answer] if len(answer) >= MIN_ANSWER else [])):
            if len(key) >= MIN_PASSAGE:
                self._hashes.append(hashed(key))
                self._rows.append(row)
                self._lengths.append(min(len(key), 1 << 20))

    def shared(self, largest: int) -> Iterator[list[int]]:
        """Yield rows that share a passage, at most `largest` rows each; the longest and rarest passages come first."""
        hashes, rows = np.array(self._hashes, dtype=np.uint64), np.array(self._rows, dtype=np.int64)
        runs = [run for run in rows_by_key(hashes) if len(run) <= largest]
        runs.sort(key=lambda run: -self._lengths[run[0]] / len(run))
        for run in runs:
            yield rows[run].tolist()


def largest_group(rows: int) -> int:
    """Return how many rows a shared passage or similarity may hold together.

    Text that more rows share is an instruction or a template; a context has some dozen questions.
    """
    return max(2, min(rows // 5, max(50, rows // 50)))
