"""Beam search as in transformers' `generate(num_beams=…)`, without a model: it takes logits and returns tokens.

Each step takes the logits of all running beams, and returns the parent and the token of each of the next beams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gladstone.errors import ConfigError, listed
from runtime.sampling.sampler import MAX_LENGTH_PENALTY, Sampling

__all__ = ["BeamSearch", "Beams", "Hypothesis", "Moves", "banned_by_ngrams"]

BLOCK = 256  # logits whose maximum is compared first
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Beams:
    """The settings, with transformers' meaning and, except for the count, its defaults.

    A hypothesis of N tokens, its end token included, scores the sum of its log-probabilities / N ** length_penalty:
    values above 0 favour long hypotheses. `early_stopping` True ends the search as soon as `count` hypotheses have
    ended; False, once the best running one scores worse than all of them; "never", only when no running one could
    ever score better. `no_repeat_ngram` N forbids to repeat any run of N tokens (0: none). `repetition_penalty`
    multiplies the log-probability of each token that occurred before.
    """

    count: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, sampling: Sampling) -> "Beams | None":
        """The search that a request asks for; None for a single beam. Raises ConfigError for unusable settings."""
        if sampling.beams == 1:
            return None
        return cls(
            sampling.beams,
            sampling.length_penalty,
            sampling.early_stopping,
            sampling.no_repeat_ngram,
            sampling.repeat_penalty,
        )

    def __post_init__(self) -> None:
        """Raises ConfigError that names every field that cannot be used."""
        allowed = {
            "count": (_is_whole(self.count, 1, 2**31 - 1), "1 or more"),
            "length_penalty": (
                _is_between(self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
                f"-{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY} (0: no matter how long)",
            ),
            "early_stopping": (
                isinstance(self.early_stopping, bool) or self.early_stopping == "never",
                "True, False or 'never'",
            ),
            "no_repeat_ngram": (_is_whole(self.no_repeat_ngram, 0, 2**31 - 1), "0 (off) or more"),
            "repetition_penalty": (_is_between(self.repetition_penalty, 0.1, 10), "0.1 to 10 (1 is no penalty)"),
        }
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {expected}"
            for name, (is_allowed, expected) in allowed.items()
            if not is_allowed
        ]
        if problems:
            raise ConfigError(listed("the settings of the beam search cannot be used", problems))


@dataclass(frozen=True)
class Hypothesis:
    """A text and its score. `tokens` begin after the start token; the last one is the end token if it `ended`."""

    tokens: tuple[int, ...]
    score: float
    ended: bool


class Moves(NamedTuple):
    """The next beams, the best first: the index of each one's parent (B,) and its token (B,) int32."""

    parents: npt.NDArray[np.intp]
    tokens: Ids


class BeamSearch:
    """One search. Call `step` until `finished`; `hypotheses` can be read then, or when the search is cancelled."""

    def __init__(self, settings: Beams, start: int, ends: Sequence[int], max_tokens: int) -> None:
        """`start` is the decoder's first token, `ends` are end tokens, `max_tokens` bounds the tokens after the start.

        Raises ValueError without an end token or room for a token.
        """
        if not ends or max_tokens < 1:
            raise ValueError(f"a search needs end tokens and room for one token, not {list(ends)} and {max_tokens}")
        self._settings = settings
        self._ends = np.asarray(ends, dtype=np.int32)
        self._max_tokens = max_tokens
        self._candidates = settings.count * (len(ends) + 1)  # enough that `count` continue even if all of the best end
        self._tokens = np.array([[start]], dtype=np.int32)  # (B, T) of the running beams, the start token included
        self._totals = np.zeros(1, dtype=np.float32)  # (B,) sums of their log-probabilities
        self._done: list[Hypothesis] = []
        self._work = np.zeros((0, 0), dtype=np.float32)
        self.finished = False

    @property
    def running(self) -> int:
        """Beams whose logits the next step takes: 1 at first, then `count`."""
        return len(self._tokens)

    @property
    def length(self) -> int:
        """Tokens of each running beam after the start token."""
        return int(self._tokens.shape[1]) - 1

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """At most `count`, the best first. In a cancelled search the running ones follow those that ended."""
        if self.finished:
            return list(self._done)
        length = max(self.length, 1)
        running = [
            Hypothesis(tuple(row[1:].tolist()), self._score(total, length), ended=False)
            for row, total in zip(self._tokens, self._totals, strict=True)
        ]
        return (self._done + running)[: self._settings.count]

    def step(self, logits: npt.NDArray[np.float32]) -> Moves:
        """Choose the next beams from the logits (B, V) of all running ones, in their order; `logits` is not changed.

        Raises ValueError for another number of beams, or when the search is finished.
        """
        if self.finished or len(logits) != self.running:
            under_way = "is finished" if self.finished else f"has {self.running} beams running"
            raise ValueError(f"logits of {len(logits)} beams for a search that {under_way}")
        parents, chosen, totals = _best(self._continued(logits), self._candidates)
        rows = np.concatenate([self._tokens[parents], chosen[:, None]], axis=1)
        ended = np.isin(chosen, self._ends)
        stops = ended | (rows.shape[1] > self._max_tokens)
        for index in np.flatnonzero(stops[: self._settings.count]):
            self._add(rows[index, 1:], totals[index], is_end=bool(ended[index]))
        onward = np.flatnonzero(~stops)[: self._settings.count]
        self._tokens, self._totals = rows[onward], totals[onward]
        self.finished = not len(onward) or not self._can_improve()
        return Moves(parents[onward], chosen[onward])

    def _continued(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Totals (B, V) after each possible token. Penalties apply to log-probabilities, as in transformers."""
        beams, vocabulary = logits.shape
        if self._work.shape != (beams + 1, vocabulary):  # reused: allocating it in each step took most of the time
            self._work = np.empty((beams + 1, vocabulary), dtype=np.float32)
        scores, spare = self._work[:beams], self._work[beams]
        for row, of_beam in zip(scores, logits, strict=True):
            np.subtract(of_beam, of_beam.max(), out=row)
            np.subtract(row, np.log(np.exp(row, out=spare).sum()), out=row)
        if self._settings.repetition_penalty != 1:
            seen = np.take_along_axis(scores, self._tokens, axis=1)  # log-probabilities, all at most 0
            np.put_along_axis(scores, self._tokens, seen * np.float32(self._settings.repetition_penalty), axis=1)
        if self._settings.no_repeat_ngram:
            for row, tokens in zip(scores, self._tokens, strict=True):
                row[banned_by_ngrams(tokens, self._settings.no_repeat_ngram)] = -np.inf
        scores += self._totals[:, None]
        return scores

    def _add(self, tokens: Ids, total: np.float32, *, is_end: bool) -> None:
        self._done.append(Hypothesis(tuple(tokens.tolist()), self._score(total, len(tokens)), is_end))
        self._done.sort(key=lambda hypothesis: -hypothesis.score)
        del self._done[self._settings.count :]

    def _can_improve(self) -> bool:
        """Whether a running beam may still beat a finished one; with False an estimate, the same as transformers'."""
        if len(self._done) < self._settings.count:
            return True
        if self._settings.early_stopping is True:
            return False
        is_exact = self._settings.early_stopping == "never" and self._settings.length_penalty > 0
        length = self._max_tokens if is_exact else self.length
        return self._score(self._totals[0], length) > self._done[-1].score

    def _score(self, total: np.float32, length: int) -> float:
        return float(total / np.float32(length**self._settings.length_penalty))


def banned_by_ngrams(tokens: Sequence[int] | npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Tokens (N,) that would complete a run of `size` tokens that already occurs in `tokens` (T,), with duplicates.

    transformers includes the decoder's start token, and none of the encoder's prompt.
    """
    array = np.asarray(tokens, dtype=np.int32)
    windows = len(array) - size + 1
    if size < 1 or windows < 1:
        return array[:0]
    matches = np.ones(windows, dtype=np.bool_)
    for offset, token in enumerate(array[windows:]):  # the last size - 1
        matches &= array[offset : offset + windows] == token
    return array[size - 1 :][matches]


def _best(scores: npt.NDArray[np.float32], count: int) -> tuple[npt.NDArray[np.intp], Ids, npt.NDArray[np.float32]]:
    """Rows, columns and values of the `count` highest finite scores of (B, V), the highest first."""
    flat = scores.reshape(-1)
    indices = _promising(flat, count)
    indices = indices[np.lexsort((indices, -flat[indices]))][:count]
    indices = indices[np.isfinite(flat[indices])]
    rows, columns = np.divmod(indices, scores.shape[1])
    return rows, columns.astype(np.int32), flat[indices]


def _promising(flat: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Indices that include the `count` highest scores: the blocks with the highest maxima, and the incomplete last one.

    It takes a third of the time of `argpartition` over all scores.
    """
    blocks = len(flat) // BLOCK
    if blocks <= count:
        return np.arange(len(flat))
    highest = flat[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
    best = np.argpartition(highest, blocks - count)[blocks - count :]
    inside = best[:, None] * BLOCK + np.arange(BLOCK)
    return np.concatenate([inside.ravel(), np.arange(blocks * BLOCK, len(flat))])


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_between(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most
