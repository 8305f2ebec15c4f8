"""Groups of rows: which repeat each other, and which stay in one set because they share an input or a context."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from finetune.data.duplicates.content import RowContent

MIN_PASSAGE = 12  # characters: shorter ones, "Why?", "Thanks!", tell nothing of a row
MIN_ANSWER = 40  # characters: shorter ones are labels
PASSAGES = 8  # of a row, the longest


class Groups:
    """Rows that belong together; each group is known by its earliest row."""

    def __init__(self, count: int) -> None:
        self.parents = array("q", range(count))

    def head(self, row: int) -> int:
        """The earliest row of a row's group."""
        parents = self.parents
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    def join(self, one: int, other: int) -> None:
        """Make one group of two rows' groups."""
        first, second = sorted((self.head(one), self.head(other)))
        self.parents[second] = first

    def join_equal(self, keys: NDArray[np.uint64]) -> None:
        """Make one group of all rows with the same key."""
        for rows in equal_runs(keys):
            for row in rows[1:]:
                self.join(rows[0], row)

    def join_up_to(self, largest: int, sets: Iterable[list[int]]) -> None:
        """Join each set of rows in turn, but no two groups that would have more than `largest` rows together."""
        sizes = Counter(self.head(row) for row in range(len(self.parents)))
        for rows in sets:
            for row in rows[1:]:
                one, other = self.head(rows[0]), self.head(row)
                if one != other and sizes[one] + sizes[other] <= largest:
                    self.join(one, other)
                    sizes[min(one, other)] = sizes[one] + sizes[other]

    def copy(self) -> "Groups":
        """Groups of their own."""
        copied = Groups(0)
        copied.parents = self.parents[:]
        return copied


def equal_runs(keys: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Rows that share a key, each time at least two, in order."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    begins, ends = np.concatenate(([0], borders)), np.concatenate((borders, [len(keys)]))
    for index in np.flatnonzero(ends - begins > 1):
        yield order[begins[index] : ends[index]].tolist()


class Passages:
    """Hashes of each row's input turns, the longest passages in them, and its answer. Memory: 24 bytes a passage."""

    def __init__(self) -> None:
        self._hashes, self._rows, self._lengths = array("Q"), array("q"), array("L")

    def add(self, row: int, content: RowContent, hashed: Callable[[str], int]) -> None:
        """Note a row's passages."""
        whole = {" ".join(passages) for passages in content.prompt}
        parts = sorted({each for passages in content.prompt for each in passages} | whole, key=len, reverse=True)
        answer = " ".join(content.answer)
        for key in (*parts[:PASSAGES], *([answer] if len(answer) >= MIN_ANSWER else [])):
            if len(key) >= MIN_PASSAGE:
                self._hashes.append(hashed(key))
                self._rows.append(row)
                self._lengths.append(min(len(key), 1 << 20))

    def shared(self, largest: int) -> Iterator[list[int]]:
        """Rows that share a passage, at most `largest` of them; the longest and rarest passages first."""
        hashes, rows = np.array(self._hashes, dtype=np.uint64), np.array(self._rows, dtype=np.int64)
        runs = [run for run in equal_runs(hashes) if len(run) <= largest]
        runs.sort(key=lambda run: -self._lengths[run[0]] / len(run))
        for run in runs:
            yield rows[run].tolist()


def largest_group(rows: int) -> int:
    """How many rows may be held together by a shared passage or by likeness.

    A text that more have is an instruction or a template; contexts have some dozen questions each.
    """
    return max(2, min(rows // 5, max(50, rows // 50)))
