"""Metrics: each gives one score in [0, 1] per item, and says how items add up to the figure in the table.

To add one, write a function (answer, reference) → score with a doctest and put it into `METRICS`.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.results import MetricInfo, Result
from bench.shares import share, share_difference
from bench.stats import Bootstrap, Statistic, Table, compare, estimate, mean, mean_table

BLEU_ORDER = 4


@dataclass(frozen=True)
class Scored:
    """A metric over all items of one model: a score per item, and the table and statistic of the figure.

    Of a share every score is 0 or 1.
    """

    scores: tuple[float, ...]
    table: Table
    statistic: Statistic
    is_share: bool = False

    def estimate(self, bootstrap: Bootstrap) -> Result:
        """The figure with its interval."""
        return share(self.scores) if self.is_share else estimate(self.table, self.statistic, bootstrap)

    def less(self, first: "Scored", bootstrap: Bootstrap) -> Result:
        """The figure minus another model's over the same items."""
        if self.is_share:
            return share_difference(first.scores, self.scores)
        return compare(first.table, self.table, self.statistic, bootstrap)


@dataclass(frozen=True)
class Metric:
    """A named way to score answers against references; of `whole_answers` one that was cut off is none."""

    info: MetricInfo
    score: Callable[[Sequence[str], Sequence[str]], Scored]
    whole_answers: bool = False


def token_f1(answer: str, reference: str) -> float:
    """Overlap of words as SQuAD counts it: case, punctuation and articles do not matter, repeated words count.

    >>> token_f1("The left atrium.", "left atrium")
    1.0
    >>> round(token_f1("the left ventricle", "left atrium"), 2)
    0.5
    >>> token_f1("", "left atrium")
    0.0
    """
    said, wanted = _words(answer), _words(reference)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def score_token_f1(answers: Sequence[str], references: Sequence[str]) -> Scored:
    """Mean token F1."""
    return _averaged([token_f1(*pair) for pair in zip(answers, references, strict=True)])


def score_rouge(kind: str, answers: Sequence[str], references: Sequence[str]) -> Scored:
    """Mean ROUGE F1 of one kind (`rouge1`, `rouge2`, `rougeL`), by the rouge-score package with stemming.

    >>> score_rouge("rouge1", ["the heart fails"], ["the heart failed"]).scores
    (1.0,)
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    pairs = zip(answers, references, strict=True)
    return _averaged([float(scorer.score(reference, answer)[kind].fmeasure) for answer, reference in pairs])


def score_bleu(answers: Sequence[str], references: Sequence[str]) -> Scored:
    """Corpus BLEU by sacrebleu's counts; the scores per item are its sentence BLEU with effective order.

    >>> score_bleu(["the heart pumps the blood"], ["the heart pumps the blood"]).scores
    (1.0,)
    """
    from sacrebleu.metrics import BLEU

    sentence, corpus = BLEU(effective_order=True), BLEU()
    scores, rows = [], []
    for answer, reference in zip(answers, references, strict=True):
        scores.append(min(sentence.sentence_score(answer, [reference]).score / 100, 1.0))
        counts = corpus.corpus_score([answer], [[reference]])
        rows.append([*counts.counts, *counts.totals, counts.sys_len, counts.ref_len])
    return Scored(tuple(scores), np.asarray(rows, float), corpus_bleu)


def corpus_bleu(sums: Table) -> Table:
    """BLEU in [0, 1] from summed counts (..., 10): matches and totals of 1- to 4-grams, answer and reference length.

    sacrebleu's default: an order without a match counts as 1/2, the next such as 1/4, …; without any match BLEU is 0.
    """
    matches, totals = sums[..., :BLEU_ORDER], sums[..., BLEU_ORDER : 2 * BLEU_ORDER]
    length, reference_length = sums[..., -2], sums[..., -1]
    empty = matches == 0
    smoothed = np.where(empty, 0.5 ** np.cumsum(empty, axis=-1), matches)
    usable = (totals > 0).all(axis=-1) & (matches.sum(axis=-1) > 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # where it is not usable
        precision = np.exp(np.log(smoothed / totals).mean(axis=-1))
        brevity = np.exp(np.minimum(0.0, 1 - reference_length / length))
        return np.where(usable, np.minimum(precision * brevity, 1.0), 0.0)


def _rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], Scored]:
    return lambda answers, references: score_rouge(kind, answers, references)


METRICS: dict[str, Metric] = {
    info.name: Metric(info, score)
    for info, score in (
        (MetricInfo("rouge1", "ROUGE-1", higher_is_better=True), _rouge("rouge1")),
        (MetricInfo("rouge2", "ROUGE-2", higher_is_better=True), _rouge("rouge2")),
        (MetricInfo("rougeL", "ROUGE-L", higher_is_better=True), _rouge("rougeL")),
        (MetricInfo("bleu", "BLEU", higher_is_better=True), score_bleu),
        (MetricInfo("token_f1", "token F1", higher_is_better=True), score_token_f1),
    )
}


def _averaged(scores: list[float]) -> Scored:
    return Scored(tuple(scores), mean_table(scores), mean)


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    plain = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()
