"""Finds rows that repeat others, rows that contradict others, and rows that are merely similar.

Exact copies are found by hash, similar rows by MinHash LSH over the text that varies between rows; each candidate is
then compared word by word. Memory at a similarity of 0.8: 200 bytes per row for band keys, bits and hashes, and 20
bytes per passage of its input. Time: at most 16 comparisons per row and band.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from finetune.data.cleaning.clean import words_key
from finetune.data.duplicates.compare_rows import say_the_same
from finetune.data.duplicates.content_keys import RowContent, message_text, read_content
from finetune.data.duplicates.grams import Characters, CommonText, Sketcher, jaccard
from finetune.data.duplicates.groups import Groups, Passages, largest_group, rows_by_key
from gladstone.chat.messages import Conversation

BATCH = 256
SAMPLED_ROWS = 5_000  # evenly spread, to learn the common text and the known words
KNOWN_ROWS = 3  # a word in at least this many sampled rows is not a misprint
MAX_COMPARED = 16  # candidates per row and band; only the latest are compared
MAX_KEPT = 64  # distinct rows per group that later rows are compared with
CACHED_ROWS = 4096
T = TypeVar("T")


def question_key(conversation: Conversation) -> str:
    """Return the key that rows with the same question share: the words before the answer, or of a plain text."""
    asked = " ".join(message_text(message) for message in conversation.prompt)
    return words_key(asked) or words_key(conversation.answer.content)


def key_hash(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Rows(Protocol):
    """Rows with sequential and random access."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Conversation]: ...
    def __getitem__(self, number: int, /) -> Conversation: ...


class Duplicates:
    """Finds repeated rows among `rows`, which are sampled, read once in order, and then read by number.

    `partners` maps each row that repeats an earlier, unrepeated one to that row and their similarity. `groups` joins
    rows that must be in one set whatever the size of the group: repeated rows, and rows with the same input. `similar`
    joins rows whose varying text is similar, directly or through others. `questions` holds a hash of each row's
    question. `grams` returns the sorted grams of the varying text of a row; `known` are words that several rows have.
    """

    def __init__(self, rows: Rows, similarity: float | None) -> None:
        self.rows = rows
        self.groups = Groups(len(rows))
        self.partners: dict[int, tuple[int, float]] = {}
        self.questions = np.empty(len(rows), dtype=np.uint64)
        self._similarity = similarity
        self.similar, self._edges = Groups(len(rows)), array("q")
        self._inputs, self._keys, self._exact = (np.empty(len(rows), dtype=np.uint64) for _ in range(3))
        self._common, self._passages, self.known = CommonText(), Passages(), frozenset[str]()
        self._bits, self._most_differing = array("Q"), 0
        self.grams = lru_cache(maxsize=CACHED_ROWS)(self._read_grams)

    def find(self) -> None:
        """Fill in `groups`, `partners` and `questions`."""
        sketcher = Sketcher(self._similarity) if self._similarity is not None else None
        if sketcher:
            self._most_differing = sketcher.most_differing_bits
            self._learn_common_text()
        bands = self._hash_rows(sketcher)
        self._find_copies()
        if sketcher:
            self._find_repeated(self._keys, self.groups)
            for band in bands:
                for rows in rows_by_key(band):
                    self._join_similar([row for row in rows if row not in self.partners])
            self._find_partners()
        self.groups.merge_equal(self._inputs)

    def conflicts(self) -> Iterator[tuple[int, int]]:
        """Yield, in order, rows with the input of an earlier row but another answer, each with that row."""
        yield from sorted(self._conflicting())

    def _conflicting(self) -> Iterator[tuple[int, int]]:
        for run in rows_by_key(self._inputs):
            first, *later = [row for row in run if row not in self.partners] or [run[0]]
            if not self.rows[first].is_text:
                yield from ((row, first) for row in later)

    def split_groups(self) -> Groups:
        """Return groups for the division: `groups`, joined with similar rows and shared passages up to a size limit."""
        largest = largest_group(len(self.rows))
        groups = self.groups.copy()
        groups.merge_up_to(largest, ([*pair] for pair in zip(self._edges[::2], self._edges[1::2], strict=True)))
        groups.merge_up_to(largest, self._passages.shared(largest))
        return groups

    def _learn_common_text(self) -> None:
        """Learn from a sample of rows which text is common and which words are known."""
        words: Counter[str] = Counter()
        numbers = range(0, len(self.rows), -(-len(self.rows) // SAMPLED_ROWS) or 1)
        for batch in batches(numbers):
            turns = [list(read_content(self.rows[number]).turns()) for number in batch]
            self._common.count(Characters(turns))
            for row in turns:
                words.update({word for turn in row for word in turn.split()})
        self.known = frozenset(word for word, times in words.items() if times >= KNOWN_ROWS)

    def _hash_rows(self, sketcher: Sketcher | None) -> NDArray[np.uint64]:
        """Hash every row and its passages; return band keys if near duplicates are wanted, (bands, rows) uint64."""
        bands = np.empty((sketcher.shape[0] if sketcher else 0, len(self.rows)), dtype=np.uint64)
        begin = 0
        for batch in batches(self.rows):
            contents = [read_content(row) for row in batch]
            for number, (row, content) in enumerate(zip(batch, contents, strict=True), begin):
                self._hash_row(number, row, content)
            if sketcher:
                keys, bits = sketcher.sketch(self._common.grams([list(content.turns()) for content in contents]))
                bands[:, begin : begin + len(batch)] = keys
                self._bits.frombytes(bits.tobytes())
            begin += len(batch)
        return bands

    def _hash_row(self, number: int, row: Conversation, content: RowContent) -> None:
        self._exact[number] = key_hash(repr((row.messages, row.tools)))
        self._keys[number] = key_hash(content.key)
        prompt = content.prompt_key
        self._inputs[number] = key_hash(f"{row.tools}\n{prompt}" if prompt else content.key)
        self.questions[number] = key_hash(question_key(row))
        self._passages.add(number, content, key_hash)

    def _find_copies(self) -> None:
        for rows in rows_by_key(self._exact):
            first = self.rows[rows[0]]
            for row in rows[1:]:
                other = self.rows[row]
                if (other.messages, other.tools) == (first.messages, first.tools):
                    self.groups.merge(rows[0], row)
                    self.partners[row] = rows[0], 1.0

    def _find_repeated(self, keys: NDArray[np.uint64], groups: Groups) -> None:
        """Find rows with the same key that also say the same."""
        for run in rows_by_key(keys):
            kept: list[int] = []
            for row in run:
                if row in self.partners:
                    continue
                partner = next((other for other in kept if self._say_the_same(row, other)), None)
                if partner is not None:
                    groups.merge(partner, row)
                    self.partners[row] = partner, 1.0
                elif len(kept) < MAX_COMPARED:
                    kept.append(row)

    def _join_similar(self, rows: list[int]) -> None:
        for index, row in enumerate(rows):
            for other in rows[max(0, index - MAX_COMPARED) : index]:
                if (
                    self._may_be_similar(row, other)
                    and self.similar.root(row) != self.similar.root(other)
                    and self._similarity_of(row, other)
                ):
                    self.similar.merge(row, other)
                    self._edges.extend((other, row))

    def _find_partners(self) -> None:
        """In each group of similar rows, find rows that say the same as an earlier row that is kept."""
        kept: dict[int, list[int]] = {}
        for row in range(len(self.rows)):
            root = self.similar.root(row)
            if root == row or row in self.partners:
                continue
            others = kept.setdefault(root, [root])
            for other in others:
                similarity = self._similarity_of(row, other)
                if similarity and self._say_the_same(row, other):
                    self.partners[row] = other, similarity
                    self.groups.merge(row, other)
                    break
            else:
                if len(others) < MAX_KEPT:
                    others.append(row)

    def _say_the_same(self, row: int, other: int) -> bool:
        return say_the_same(self.rows[row], self.rows[other], self.known)

    def _may_be_similar(self, row: int, other: int) -> bool:
        """False if too few bits of the minima agree; saves reading the rows."""
        bits = self._bits
        differing = (bits[2 * row] ^ bits[2 * other]).bit_count() + (
            bits[2 * row + 1] ^ bits[2 * other + 1]
        ).bit_count()
        return differing <= self._most_differing

    def _similarity_of(self, row: int, other: int) -> float:
        """Return the Jaccard similarity of the varying text of two rows, 0 if it is below the threshold."""
        similarity = jaccard(self.grams(row), self.grams(other))
        return similarity if self._similarity is not None and similarity >= self._similarity else 0.0

    def _read_grams(self, row: int) -> NDArray[np.uint64]:
        return np.unique(self._common.grams([list(read_content(self.rows[row]).turns())])[0])
