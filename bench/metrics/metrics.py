"""Metrics: each gives one score in [0, 1] per item, and defines how the items add up to the value in the table.

To add one, write a function (answers, references) → MetricScores with a doctest and add it to `METRICS`. How a text is
split depends on the writing system of its reference (`tokenisers`). A reference that no tokeniser can split gets no
score, rather than 0.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

from bench.metrics.bootstrap import Bootstrap, Statistic, Table, compare, estimate, mean, mean_table
from bench.metrics.proportions import proportion, proportion_difference
from bench.metrics.tokenisers import answer_tokens, rouge_tokens, tokenisers_of
from bench.metrics.writing_systems import EMPTY, ENGLISH, detect_writing_systems
from bench.results import MetricInfo, Result

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

BLEU_ORDER = 4
MIN_SCORED = 2  # items with a score that an interval needs


@dataclass(frozen=True)
class MetricScores:
    """A metric over all items of one model: a score per item, and the table and statistic of the result.

    The scores of a proportion are 0 or 1. An item whose reference the metric cannot score has None and no row in the
    table. `unseen` is the reason why there is no result at all, else ''; `remark` is a caveat.
    """

    scores: tuple[float | None, ...]
    table: Table
    statistic: Statistic
    is_proportion: bool = False
    unseen: str = ""
    remark: str = ""

    def estimate(self, bootstrap: Bootstrap) -> Result:
        """The result with its interval."""
        return proportion(self._seen()) if self.is_proportion else estimate(self.table, self.statistic, bootstrap)

    def minus(self, first: "MetricScores", bootstrap: Bootstrap) -> Result:
        """The result minus that of another model over the same items."""
        if self.is_proportion:
            return proportion_difference(first._seen(), self._seen())
        return compare(first.table, self.table, self.statistic, bootstrap)

    def _seen(self) -> list[float]:
        return [score for score in self.scores if score is not None]


@dataclass(frozen=True)
class Metric:
    """Scores answers against references; with `whole_answers`, an answer that was cut off scores 0."""

    info: MetricInfo
    score: Callable[[Sequence[str], Sequence[str]], MetricScores]
    whole_answers: bool = False


def scored(scores: Sequence[float | None], *, is_proportion: bool = False, unseen: str = "") -> MetricScores:
    """A metric whose result is the mean of the scores, None left out."""
    seen = [score for score in scores if score is not None]
    if len(seen) < MIN_SCORED and not unseen:
        unseen = f"fewer than {MIN_SCORED} references contain text"
    return MetricScores(tuple(scores), mean_table(seen), mean, is_proportion, unseen)


def token_f1(answer: str, reference: str, kind: str = ENGLISH) -> float:
    """Overlap of words as in SQuAD: case, punctuation and articles are ignored, repeated words count.

    >>> token_f1("The left atrium.", "left atrium")
    1.0
    >>> round(token_f1("the left ventricle", "left atrium"), 2)
    0.5
    >>> token_f1("", "left atrium")
    0.0
    """
    said, wanted = map(answer_tokens(kind), (answer, reference))
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def score_token_f1(answers: Sequence[str], references: Sequence[str]) -> MetricScores:
    """Mean token F1."""
    rows = _rows(answers, references)
    return scored([None if kind == EMPTY else token_f1(answer, reference, kind) for answer, reference, kind in rows])


def score_exact_match(answers: Sequence[str], references: Sequence[str]) -> MetricScores:
    """The proportion of answers with the words of the reference in its order.

    >>> score_exact_match(["Yes.", "не"], ["yes", "да"]).scores
    (1.0, 0.0)
    """
    scores = []
    for answer, reference, kind in _rows(answers, references):
        tokens = answer_tokens(kind)
        scores.append(None if kind == EMPTY else float(tokens(answer) == tokens(reference)))
    return scored(scores, is_proportion=True)


def score_rouge(kind: str, answers: Sequence[str], references: Sequence[str]) -> MetricScores:
    """Mean ROUGE F1 of a kind (`rouge1`, `rouge2`, `rougeL`) by the rouge-score package; English is stemmed.

    >>> score_rouge("rouge1", ["the heart fails"], ["the heart failed"]).scores
    (1.0,)
    >>> score_rouge("rouge1", ["сердце"], ["Сердце!"]).scores
    (1.0,)
    """
    scores: list[float | None] = []
    lengths = []
    for answer, reference, writing in _rows(answers, references):
        if writing == EMPTY:
            scores.append(None)
            continue
        lengths.append(len(rouge_tokens(writing)(reference)))
        scores.append(float(_rouge_scorer(kind, writing).score(reference, answer)[kind].fmeasure))
    if kind != "rouge2":
        return scored(scores)
    short = sum(length < 2 for length in lengths)
    remark = f"{short} of {len(lengths)} references have a single token, and therefore no bigrams: they count as 0"
    found = scored(scores, unseen=_too_short(max(lengths, default=0), 2))
    return replace(found, remark=remark if short and not found.unseen else "")


@cache
def _rouge_scorer(kind: str, writing: str) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_Tokeniser(rouge_tokens(writing)))


class _Tokeniser:
    """Adapter to the tokeniser interface of rouge-score."""

    def __init__(self, tokens: Callable[[str], list[str]]) -> None:
        self.tokenize = tokens


def score_bleu(answers: Sequence[str], references: Sequence[str]) -> MetricScores:
    """Corpus BLEU from sacrebleu's counts; the score of an item is sentence BLEU with effective order.

    >>> score_bleu(["the heart pumps the blood"], ["the heart pumps the blood"]).scores
    (1.0,)
    """
    scores: list[float | None] = []
    counted = []
    for answer, reference, kind in _rows(answers, references):
        if kind == EMPTY:
            scores.append(None)
            continue
        sentence, corpus = _bleu(tokenisers_of(kind).bleu)
        # é may be one code point or two; English is passed as is, to give the values of sacrebleu itself
        said, wanted = (text if kind == ENGLISH else normalize("NFC", text) for text in (answer, reference))
        scores.append(min(sentence.sentence_score(said, [wanted]).score / 100, 1.0))
        counts = corpus.corpus_score([said], [[wanted]])
        counted.append([*counts.counts, *counts.totals, counts.sys_len, counts.ref_len])
    table = np.asarray(counted, float).reshape(-1, 2 * BLEU_ORDER + 2)
    unseen = scored(scores).unseen or _too_short(int(table[:, -1].max(initial=0)), BLEU_ORDER)
    return MetricScores(tuple(scores), table, corpus_bleu, unseen=unseen)


@cache
def _bleu(tokeniser: str) -> "tuple[BLEU, BLEU]":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, tokenize=tokeniser), BLEU(tokenize=tokeniser)


def corpus_bleu(sums: Table) -> Table:
    """BLEU in [0, 1] from summed counts (..., 10): matches and totals of 1- to 4-grams, answer and reference length.

    sacrebleu's default: an order without a match counts as 1/2, the next such as 1/4, …; without any match BLEU is 0.
    """
    matches, totals = sums[..., :BLEU_ORDER], sums[..., BLEU_ORDER : 2 * BLEU_ORDER]
    length, reference_length = sums[..., -2], sums[..., -1]
    empty = matches == 0
    smoothed = np.where(empty, 0.5 ** np.cumsum(empty, axis=-1), matches)
    usable = (totals > 0).all(axis=-1) & (matches.sum(axis=-1) > 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # entries that are not usable
        precision = np.exp(np.log(smoothed / totals).mean(axis=-1))
        brevity = np.exp(np.minimum(0.0, 1 - reference_length / length))
        return np.where(usable, np.minimum(precision * brevity, 1.0), 0.0)


def _rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], MetricScores]:
    return lambda answers, references: score_rouge(kind, answers, references)


METRICS: dict[str, Metric] = {
    info.name: Metric(info, score)
    for info, score in (
        (MetricInfo("rouge1", "ROUGE-1", higher_is_better=True), _rouge("rouge1")),
        (MetricInfo("rouge2", "ROUGE-2", higher_is_better=True), _rouge("rouge2")),
        (MetricInfo("rougeL", "ROUGE-L", higher_is_better=True), _rouge("rougeL")),
        (MetricInfo("bleu", "BLEU", higher_is_better=True), score_bleu),
        (MetricInfo("token_f1", "token F1", higher_is_better=True), score_token_f1),
        (MetricInfo("exact_match", "exact match", higher_is_better=True), score_exact_match),
    )
}


def _rows(answers: Sequence[str], references: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Answer, reference, and the writing system of the reference."""
    kinds = (writing.kind for writing in detect_writing_systems(tuple(references)))
    return zip(answers, references, kinds, strict=True)


def _too_short(longest: int, order: int) -> str:
    """The reason why no reference has n-grams of this order, '' if one has."""
    return "" if longest >= order else f"no reference has {order} tokens, and it compares {order}-grams"
