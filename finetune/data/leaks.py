"""Training rows that a test file holds too: the same question, a similar one, or one inside a longer text."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.clean import words_key
from finetune.data.duplicates import batches, key_hash, question_key, row_text
from finetune.data.grams import Sketcher, gram_hashes, jaccard
from finetune.data.words import COMMON_WORDS, one_letter_off
from gladstone.artifacts import write_rows
from gladstone.chat import Conversation
from gladstone.errors import MAX_LISTED_PROBLEMS, DataError, listed
from gladstone.formats import checked_conversations, find_layout

WORDS = 8  # a question of fewer words is too common to be looked for inside other texts
CONTAINED = 0.8  # of its runs of eight words
MIN_RUNS = 3  # of a question's own; with fewer, two questions of one pattern may share them all
_NONE = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Leak:
    """A training row and the test row it resembles; `kind` is 'same question', 'similar …' or 'contains …'."""

    train: str
    test: str
    kind: str
    similarity: float


class LeakIndex:
    """Test rows, to be asked about training rows. Memory: the test texts and some 700 bytes a test row."""

    def __init__(self, test: Iterable[Conversation], similarity: float) -> None:
        self._similarity = similarity
        self._sketcher = Sketcher(similarity)
        self._sources: list[str] = []
        self._texts: list[tuple[str, str]] = []  # question and whole row
        self._questions: dict[int, int] = {}
        for row in test:
            texts = _texts(row)
            self._questions.setdefault(key_hash(texts[0]), len(self._sources))
            self._sources.append(row.source)
            self._texts.append(texts)
        self._bands = [self._sketch_all(kind) for kind in (0, 1)]
        self._runs, self._owners, self._run_counts = self._word_runs()

    def __len__(self) -> int:
        return len(self._sources)

    def leaks(self, train: Iterable[Conversation]) -> Iterator[tuple[int, Leak]]:
        """The training rows with a likeness among the test rows, by number; each once, with its closest kind."""
        begin = 0
        for batch in batches(train):
            texts = [_texts(row) for row in batch]
            similar = self._similar_of(batch, texts)
            for index, (row, (question, whole)) in enumerate(zip(batch, texts, strict=True)):
                leak = self._same(row, question) or similar.get(index) or self._contained(row, whole)
                if leak:
                    yield begin + index, leak
            begin += len(batch)

    def _same(self, row: Conversation, question: str) -> Leak | None:
        index = self._questions.get(key_hash(question))
        return None if index is None else Leak(row.source, self._sources[index], "same question", 1.0)

    def _similar_of(self, batch: list[Conversation], pairs: list[tuple[str, str]]) -> dict[int, Leak]:
        found: dict[int, Leak] = {}
        for kind, name in enumerate(("similar question", "similar row")):
            texts = [pair[kind] for pair in pairs]
            grams = [gram_hashes(text) for text in texts]
            for index, test in self._candidates(kind, self._sketcher.sketch(grams)[0]):
                if index in found:
                    continue
                own = np.unique(gram_hashes(self._texts[test][kind]))
                similarity = jaccard(np.unique(grams[index]), own)
                asks_the_same = kind == 1 or same_words(texts[index], self._texts[test][0])
                if similarity >= self._similarity and asks_the_same:
                    found[index] = Leak(batch[index].source, self._sources[test], name, similarity)
        return found

    def _candidates(self, kind: int, keys: NDArray[np.uint64]) -> list[tuple[int, int]]:
        pairs: set[tuple[int, int]] = set()
        for band, (ordered, order) in zip(keys, self._bands[kind], strict=True):
            begins, ends = np.searchsorted(ordered, band), np.searchsorted(ordered, band, side="right")
            for index in np.flatnonzero(ends > begins):
                pairs.update((int(index), int(test)) for test in order[begins[index] : ends[index]][:16])
        return sorted(pairs)

    def _sketch_all(self, kind: int) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        keys = [
            self._sketcher.sketch([gram_hashes(texts[kind]) for texts in batch])[0] for batch in batches(self._texts)
        ]
        joined = np.concatenate(keys, axis=1) if keys else np.empty((self._sketcher.shape[0], 0), dtype=np.uint64)
        orders = [np.argsort(band, kind="stable") for band in joined]
        return [(band[order], order) for band, order in zip(joined, orders, strict=True)]

    def _word_runs(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        runs = [_runs(question.split()) for question in {question for question, _ in self._texts}]
        # a run that two questions share is a turn of phrase: "what are the symptoms of …" gives nothing away
        keys, times = np.unique(np.concatenate([_NONE, *runs]), return_counts=True)
        own = keys[times == 1]
        runs = [np.intersect1d(_runs(question.split()), own) for question, _ in self._texts]
        runs = [run if len(run) >= MIN_RUNS else _NONE for run in runs]
        counts = np.array([len(run) for run in runs], dtype=np.int64)
        owners = np.repeat(np.arange(len(runs)), counts)
        joined = np.concatenate([_NONE, *runs])
        order = np.argsort(joined, kind="stable")
        return joined[order], owners[order], counts

    def _contained(self, row: Conversation, whole: str) -> Leak | None:
        words = words_key(whole).split()
        own = _runs(words)
        begins, ends = np.searchsorted(self._runs, own), np.searchsorted(self._runs, own, side="right")
        hits = [self._owners[begin:end] for begin, end in zip(begins, ends, strict=True) if end > begin]
        if not hits:
            return None
        tests, counts = np.unique(np.concatenate(hits), return_counts=True)
        shares = counts / self._run_counts[tests]
        best = int(np.argmax(shares))
        asked = {word for word in self._texts[tests[best]][0].split() if word not in COMMON_WORDS}
        if shares[best] < CONTAINED or not asked <= set(words):
            return None
        return Leak(row.source, self._sources[tests[best]], "contains the question", float(shares[best]))


@dataclass
class Comparison:
    """What `finetune data leaks` tells."""

    train: Path
    against: Path
    train_rows: int = 0
    test_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, leak: Leak) -> None:
        """Count one."""
        self.kinds[leak.kind] += 1
        if len(self.shown) < MAX_LISTED_PROBLEMS:
            self.shown.append(f"{leak.train}: {leak.kind} as {leak.test} ({leak.similarity:.2f})")

    def described(self) -> str:
        """The figures in a line."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common()) or "no leak"
        return f"{self.train_rows:,} training rows against {self.test_rows:,} test rows: {kinds}"

    def check(self) -> None:
        """Raises DataError if there is any."""
        if self.shown:
            headline = f"{self.train} has rows of {self.against}"
            raise DataError(listed(headline, self.shown, self.kinds.total()))


def compare(train: tuple[Path, str], against: tuple[Path, str], similarity: float, out: Path | None) -> Comparison:
    """Compare two files, each with its format, row by row; all leaks go to `out`. Raises DataError for bad rows."""
    index = LeakIndex(checked_conversations(against[0], find_layout(*against)), similarity)
    compared = Comparison(train[0], against[0], test_rows=len(index))

    def counted() -> Iterator[Conversation]:
        for row in checked_conversations(train[0], find_layout(*train)):
            compared.train_rows += 1
            yield row

    def told() -> Iterator[dict[str, Any]]:
        for _, leak in index.leaks(counted()):
            compared.add(leak)
            yield asdict(leak)

    if out is None:
        deque(told(), maxlen=0)
    else:
        write_rows(out, told())
    return compared


def same_words(one: str, other: str) -> bool:
    """True if two questions differ only in short and common words, in order, or in single letters.

    Questions of one pattern, "symptoms of asthma", "symptoms of gout", are as similar as a question and its rewording.
    """
    ours, others = ({word for word in text.split() if word not in COMMON_WORDS} for text in (one, other))
    left, right = ours - others, others - ours
    return len(left) == len(right) and all(any(one_letter_off(word, mate) for mate in right) for word in left)


def _texts(row: Conversation) -> tuple[str, str]:
    return question_key(row), row_text(row)


def _runs(words: list[str]) -> NDArray[np.uint64]:
    """Hashes of a text's runs of eight words, each once."""
    runs = {key_hash(" ".join(words[index : index + WORDS])) for index in range(len(words) - WORDS + 1)}
    return np.array(sorted(runs), dtype=np.uint64)
