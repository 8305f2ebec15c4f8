"""Rows that say the same: exact copies by hash, near ones by MinHash LSH, each candidate pair checked exactly.

The budget at a similarity of 0.8: 160 bytes a row for band keys and bits, and 16 comparisons a row and band at most.
"""

from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from finetune.data.clean import words_key
from finetune.data.grams import Sketcher, gram_hashes, jaccard
from gladstone.chat import Conversation

BATCH = 256
MAX_COMPARED = 16  # a row with more candidates in a band is compared with the latest only
MAX_KEPT = 64  # in a group of more rows that are all different, later ones are compared with the first only
CACHED_ROWS = 4096
T = TypeVar("T")


def row_text(conversation: Conversation) -> str:
    """All that a row says, reasoning included."""
    return "\n".join(part for message in conversation.messages for part in (message.reasoning, message.content) if part)


def question_key(conversation: Conversation) -> str:
    """What makes two rows the same question: the user's words. A row of plain text is known by its own words."""
    asked = " ".join(message.content for message in conversation.messages if message.role == "user")
    return words_key(asked) or words_key(conversation.answer.content)


def key_hash(text: str) -> int:
    """64 bits for a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


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


class Rows(Protocol):
    """Rows that are read through and by number."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Conversation]: ...
    def __getitem__(self, number: int, /) -> Conversation: ...


class Duplicates:
    """Finds the groups of similar rows among `rows`, which are read through once and then by number.

    `groups` joins rows that are similar, if only by way of others; `partners` has the rows that repeat an earlier one
    that itself repeats none, with that row and the similarity. `questions` is a hash of each row's question.
    """

    def __init__(self, rows: Rows, similarity: float | None) -> None:
        self.rows = rows
        self.groups = Groups(len(rows))
        self.partners: dict[int, tuple[int, float]] = {}
        self.questions = np.empty(len(rows), dtype=np.uint64)
        self._similarity = similarity
        self._bits, self._most_differing = array("Q"), 0
        self._grams = lru_cache(maxsize=CACHED_ROWS)(self._read_grams)

    def find(self) -> None:
        """Fill in `groups`, `partners` and `questions`."""
        exact = np.empty(len(self.rows), dtype=np.uint64)
        sketcher = Sketcher(self._similarity) if self._similarity is not None else None
        self._most_differing = sketcher.most_differing_bits if sketcher else 0
        bands = np.empty((sketcher.shape[0] if sketcher else 0, len(self.rows)), dtype=np.uint64)
        begin = 0
        for batch in batches(self.rows):
            part = slice(begin, begin + len(batch))
            exact[part] = [key_hash(repr(row.messages)) for row in batch]
            self.questions[part] = [key_hash(question_key(row)) for row in batch]
            if sketcher:
                keys, bits = sketcher.sketch([gram_hashes(row_text(row)) for row in batch])
                bands[:, part] = keys
                self._bits.frombytes(bits.tobytes())
            begin += len(batch)
        self._join_copies(exact)
        for band in bands:
            for rows in equal_runs(band):
                self._join_similar([row for row in rows if row not in self.partners])
        self._find_partners()

    def _join_copies(self, exact: NDArray[np.uint64]) -> None:
        for rows in equal_runs(exact):
            for row in rows[1:]:
                if self.rows[row].messages == self.rows[rows[0]].messages:
                    self.groups.join(rows[0], row)
                    self.partners[row] = rows[0], 1.0

    def _join_similar(self, rows: list[int]) -> None:
        for place, row in enumerate(rows):
            for other in rows[max(0, place - MAX_COMPARED) : place]:
                if (
                    self._may_be_similar(row, other)
                    and self.groups.head(row) != self.groups.head(other)
                    and self._similar(row, other)
                ):
                    self.groups.join(row, other)

    def _find_partners(self) -> None:
        """In each group, the first row and every row that is like none before it that is kept so far."""
        kept: dict[int, list[int]] = {}
        for row in range(len(self.rows)):
            head = self.groups.head(row)
            if head == row or row in self.partners:
                continue
            others = kept.setdefault(head, [head])
            partner = next(((other, near) for other in others if (near := self._similar(row, other))), None)
            if partner:
                self.partners[row] = partner
            elif len(others) < MAX_KEPT:
                others.append(row)

    def _may_be_similar(self, row: int, other: int) -> bool:
        """False where too few of the minima's bits agree; saves reading the rows."""
        bits = self._bits
        differing = (bits[2 * row] ^ bits[2 * other]).bit_count() + (
            bits[2 * row + 1] ^ bits[2 * other + 1]
        ).bit_count()
        return differing <= self._most_differing

    def _similar(self, row: int, other: int) -> float:
        """The similarity of two rows, 0 where it is less than asked for."""
        similarity = jaccard(self._grams(row), self._grams(other))
        return similarity if self._similarity is not None and similarity >= self._similarity else 0.0

    def _read_grams(self, row: int) -> NDArray[np.uint64]:
        return np.unique(gram_hashes(row_text(self.rows[row])))
