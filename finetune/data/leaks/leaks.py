"""Finds training rows that a test file contains too: verbatim, paraphrased, garbled, or inside a longer text.

Candidates share rare grams with a test row's question, answer or text; each is then aligned word by word. Memory: the
test rows' texts, 24 bytes per gram, and at most 16 million characters of training rows, which are read ahead to learn
the vocabulary.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.data.duplicates.content_keys import RowContent, read_content
from finetune.data.duplicates.duplicates import batches, key_hash
from finetune.data.leaks.candidates import GramIndex
from finetune.data.leaks.match_question import match_rows
from finetune.data.leaks.rows import Match, TestRow, TrainRow
from finetune.data.leaks.vocabulary import Vocabulary
from gladstone.artifacts import write_rows
from gladstone.chat.messages import Conversation
from gladstone.errors import MAX_LISTED_PROBLEMS, DataError, listed
from gladstone.formats import checked_conversations, find_layout
from gladstone.report.terminal import one_line

LEAST_SCORE = 0.6  # lower scores are not reported
VOCABULARY_ROWS, VOCABULARY_CHARS = 20_000, 16_000_000  # training rows read ahead for their vocabulary
QUESTION_GRAM, ANSWER_GRAM, TEXT_GRAM = 4, 6, 12
SAMPLED_ANSWER, SAMPLED_TEXT = 2, 1  # one in this many of the grams that begin a word is indexed
# shares of a test row's gram weight that make it a candidate
LEAST_QUESTION, LEAST_ANSWER, LEAST_TEXT = 0.15, 0.25, 0.5
MOST_CANDIDATES, MOST_CANDIDATES_GARBLED = 4, 40  # candidates of a clean row, and of a garbled one
CONSTANT_ROWS, CONSTANT_SHARE = 5, 0.5  # a passage in this many test rows is not part of the questions
DIFF_CHARS, SAME_WORDS = 160, 3


@dataclass(frozen=True)
class Leak:
    """A training row and the test row that it resembles; `difference` shows differing words, [-test-] and {+train+}.

    `kind` is 'same question', 'similar question', 'contains the question' or 'similar row'.
    """

    train: str
    test: str
    kind: str
    similarity: float
    difference: str = ""


def least_score(similarity: float | None) -> float:
    """Return the score from which a leak counts, given the near-duplicate similarity; 1 if near duplicates are kept."""
    return LEAST_SCORE if similarity is not None and similarity < 1 else 1.0


class LeakIndex:
    """An index of test rows to look up training rows in; leaks that score below `similarity` are dropped."""

    def __init__(self, test: Iterable[Conversation], similarity: float) -> None:
        self._least = similarity
        self._sources: list[str] = []
        contents = []
        for row in test:
            self._sources.append(row.source)
            contents.append(read_content(row))
        self._vocabulary = Vocabulary()
        counts = Counter(passage for content in contents for passage in {*_passages(content)})
        many = max(CONSTANT_ROWS, CONSTANT_SHARE * len(contents))
        self._constant = {passage for passage, rows in counts.items() if rows >= many}
        self._vocabulary.constant.update(word for passage in self._constant for word in passage.split())
        self._test_rows, self._by_question = [], dict[int, int]()
        for number, content in enumerate(contents):
            self._vocabulary.add(content, test=True)
            passages = self._distinct_passages(content)
            self._by_question.setdefault(key_hash(" ".join(passages)), number)
            self._test_rows.append(TestRow(passages, " ".join(content.answer)))
            self._vocabulary.add_question(self._test_rows[-1].question.words)
        questions = [row.question.text.strip() for row in self._test_rows]
        self._questions = GramIndex(questions, QUESTION_GRAM)
        self._answers = GramIndex([row.answer for row in self._test_rows], ANSWER_GRAM, SAMPLED_ANSWER)
        self._texts = GramIndex(questions, TEXT_GRAM, SAMPLED_TEXT)

    def __len__(self) -> int:
        return len(self._sources)

    def leaks(self, train: Iterable[Conversation]) -> Iterator[tuple[int, Leak]]:
        """Yield the training rows that resemble a test row, by number, each once with its best match."""
        rows = iter(train)
        learnt = self._learn_vocabulary(rows)
        number = 0
        for batch in batches(chain(learnt, ((row, read_content(row)) for row in rows))):
            for index, (test, match) in self._match_batch([content for _, content in batch]).items():
                if match.score >= self._least:
                    difference = "" if match.score == 1 else self._difference(test, match)
                    score = round(match.score, 4)
                    leak = Leak(batch[index][0].source, self._sources[test], match.kind, score, difference)
                    yield number + index, leak
            number += len(batch)

    def _learn_vocabulary(self, rows: Iterator[Conversation]) -> list[tuple[Conversation, RowContent]]:
        """Read some rows ahead to learn their vocabulary."""
        learnt, chars = [], 0
        for row in rows:
            content = read_content(row)
            self._vocabulary.add(content, test=False)
            learnt.append((row, content))
            chars += sum(len(message.content) for message in row.messages)
            if len(learnt) >= VOCABULARY_ROWS or chars >= VOCABULARY_CHARS:
                break
        return learnt

    def _distinct_passages(self, content: RowContent) -> list[str]:
        """Return the passages of the question without those that all test rows share."""
        return [passage for passage in _passages(content) if passage not in self._constant] or _passages(content)

    def _match_batch(self, contents: list[RowContent]) -> dict[int, tuple[int, Match]]:
        """Return the leaking rows of a batch by position, each with its test row and the match."""
        questions = [" ".join(self._distinct_passages(content)) for content in contents]
        matches = {}
        for index, question in enumerate(questions):
            test = self._by_question.get(key_hash(question))
            if test is not None:
                matches[index] = test, Match("same question", 1.0, self._test_rows[test].question.words)
        rest = [index for index in range(len(contents)) if index not in matches]
        answers = [" ".join(contents[index].answer) for index in rest]
        same_question = self._questions.search(
            [questions[index] for index in rest], LEAST_QUESTION, MOST_CANDIDATES_GARBLED
        )
        same_answer = self._answers.search(answers, LEAST_ANSWER, MOST_CANDIDATES)
        inside_answer = self._texts.search(answers, LEAST_TEXT, MOST_CANDIDATES)
        for index, by_question, by_answer, inside in zip(rest, same_question, same_answer, inside_answer, strict=True):
            first = by_question[:MOST_CANDIDATES]
            tests = list(dict.fromkeys(chain(first, by_answer, by_question[MOST_CANDIDATES:])))
            best = self._best_match(contents[index], tests, inside)
            if best:
                matches[index] = best
        return dict(sorted(matches.items()))

    def _best_match(self, content: RowContent, tests: list[int], inside: list[int]) -> tuple[int, Match] | None:
        """Return the best match among the candidates; `inside` are questions that the answer may contain."""
        matches: list[tuple[int, Match]] = []
        for numbers, whole in ((tests, False), (inside, True)):
            row = TrainRow(content, self._vocabulary, whole=whole) if numbers else None
            for rank, test in enumerate(numbers):
                if row is None or (rank >= 2 * MOST_CANDIDATES and not row.may_be_garbled):
                    break
                match = match_rows(row, self._test_rows[test])
                if match:
                    matches.append((test, match))
        return max(matches, key=lambda scored: scored[1].score, default=None)

    def _difference(self, test: int, match: Match) -> str:
        return word_difference(self._test_rows[test].question.words, match.words)


@dataclass
class Comparison:
    """The result of `finetune data leaks`."""

    train: Path
    against: Path
    train_rows: int = 0
    test_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, leak: Leak) -> None:
        """Count one leak."""
        self.kinds[leak.kind] += 1
        if len(self.shown) < MAX_LISTED_PROBLEMS:
            difference = f": {leak.difference}" if leak.difference else ""
            self.shown.append(f"{leak.train}: {leak.kind} as {leak.test} ({leak.similarity:.2f}){difference}")

    def summary(self) -> str:
        """Return the figures as one line."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common()) or "no leak"
        return f"{self.train_rows:,} training rows against {self.test_rows:,} test rows: {kinds}"

    def check(self) -> None:
        """Raise DataError if there is any leak."""
        if self.shown:
            headline = f"{self.train} contains rows of {self.against}"
            raise DataError(listed(headline, self.shown, self.kinds.total()))


def compare(train: tuple[Path, str], against: tuple[Path, str], similarity: float, out: Path | None) -> Comparison:
    """Compare two files, each given with its format; write all leaks to `out`. Raises DataError for bad rows."""
    index = LeakIndex(checked_conversations(against[0], find_layout(*against)), similarity)
    compared = Comparison(train[0], against[0], test_rows=len(index))

    def counted() -> Iterator[Conversation]:
        for row in checked_conversations(train[0], find_layout(*train)):
            compared.train_rows += 1
            yield row

    def report() -> Iterator[dict[str, Any]]:
        for _, leak in index.leaks(counted()):
            compared.add(leak)
            yield asdict(leak)

    if out is None:
        deque(report(), maxlen=0)
    else:
        write_rows(out, report())
    return compared


def word_difference(one: list[str], other: list[str]) -> str:
    """Return the difference of two texts in one line: words of the first as [-these-], of the second as {+these+}."""
    from rapidfuzz.distance import Levenshtein

    parts: list[str] = []
    for edit in Levenshtein.opcodes(one, other):
        words = one[edit.src_start : edit.src_end]
        ours, theirs = " ".join(words), " ".join(other[edit.dest_start : edit.dest_end])
        if edit.tag == "equal":
            if len(words) > 2 * SAME_WORDS:
                words = [*words[:SAME_WORDS], "…", *words[-SAME_WORDS:]]
            parts.append(" ".join(words))
            continue
        parts += [f"[-{ours}-]"] * bool(ours) + [f"{{+{theirs}+}}"] * bool(theirs)
    return one_line(" ".join(parts), DIFF_CHARS)


def _passages(content: RowContent) -> list[str]:
    """Return the passages of the input, or of a plain text."""
    return [passage for turn in content.prompt for passage in turn] or content.answer
