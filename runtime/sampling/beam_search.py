"""Beam search as transformers' `generate(num_beams=…)` does it, driven from outside: it sees logits, never a model.

Each step takes the logits of all running beams, and tells which of them each of the next ones continues and by what.
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

BLOCK = 256  # logits that are looked at together
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Beams:
    """The settings, with transformers' meaning and defaults but for the count.

    A hypothesis of N tokens, its end included, scores the sum of its log-probabilities / N ** length_penalty: more than
    0 favours long ones. `early_stopping` True ends as soon as `count` have ended; False once the best that runs scores
    worse than all of them; "never" only when none that runs could ever score better. `no_repeat_ngram` N forbids a
    run of N tokens to come twice (0: none is forbidden). `repetition_penalty` multiplies the log-probability of each
    token that was there before.
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
    """How the running beams go on: each from one of those before (B,), by a token (B,); the best first."""

    parents: npt.NDArray[np.intp]
    tokens: Ids


class BeamSearch:
    """One search. Feed `step` until `finished`; then, or whenever it was given up, read `hypotheses`."""

    def __init__(self, settings: Beams, start: int, ends: Sequence[int], max_tokens: int) -> None:
        """`start` is the decoder's first token, `ends` those that end a text, `max_tokens` the most after the start."""
        if not ends or max_tokens < 1:
            raise ValueError(f"a search needs end tokens and room for one token, not {list(ends)} and {max_tokens}")
        self._settings = settings
        self._ends = np.asarray(ends, dtype=np.int32)
        self._max_tokens = max_tokens
        self._kept = settings.count * (len(ends) + 1)  # so that `count` go on even if all of the best end
        self._tokens = np.array([[start]], dtype=np.int32)  # (B, T) of the running beams, the start token included
        self._totals = np.zeros(1, dtype=np.float32)  # (B,) their summed log-probabilities
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
        """At most `count`, the best first. Of a search that was given up, those that still run follow the others."""
        if self.finished:
            return list(self._done)
        length = max(self.length, 1)
        running = [
            Hypothesis(tuple(row[1:].tolist()), self._score(total, length), ended=False)
            for row, total in zip(self._tokens, self._totals, strict=True)
        ]
        return (self._done + running)[: self._settings.count]

    def step(self, logits: npt.NDArray[np.float32]) -> Moves:
        """Choose from the logits (B, V) of all running beams, in their order. They are not changed.

        Raises ValueError for those of another number of beams, or when the search is finished.
        """
        if self.finished or len(logits) != self.running:
            under_way = "is finished" if self.finished else f"has {self.running} beams running"
            raise ValueError(f"logits of {len(logits)} beams for a search that {under_way}")
        parents, chosen, totals = _best(self._continued(logits), self._kept)
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
        """The totals (B, V) that each token would lead to; penalties fall on log-probabilities, as in transformers."""
        beams, vocabulary = logits.shape
        if self._work.shape != (beams + 1, vocabulary):  # kept, since memory that is new each time costs most of all
            self._work = np.empty((beams + 1, vocabulary), dtype=np.float32)
        scores, spare = self._work[:beams], self._work[beams]
        for row, of_beam in zip(scores, logits, strict=True):
            np.subtract(of_beam, of_beam.max(), out=row)
            np.subtract(row, np.log(np.exp(row, out=spare).sum()), out=row)
        if self._settings.repetition_penalty != 1:
            seen = np.take_along_axis(scores, self._tokens, axis=1)  # none is above 0
            np.put_along_axis(scores, self._tokens, seen * np.float32(self._settings.repetition_penalty), axis=1)
        if self._settings.no_repeat_ngram:
            for row, tokens in zip(scores, self._tokens, strict=True):
                row[banned_by_ngrams(tokens, self._settings.no_repeat_ngram)] = -np.inf
        scores += self._totals[:, None]
        return scores

    def _add(self, tokens: Ids, total: np.float32, *, is_end: bool) -> None:
        self._done.append(Hypothesis(tuple(tokens.tolist()), self._score(total, len(tokens)), is_end))
        self._done.sort(key=lambda each: -each.score)
        del self._done[self._settings.count :]

    def _can_improve(self) -> bool:
        """Could a running beam still enter the finished ones? For False a guess, which is transformers' own."""
        if len(self._done) < self._settings.count:
            return True
        if self._settings.early_stopping is True:
            return False
        reaches_on = self._settings.early_stopping == "never" and self._settings.length_penalty > 0
        length = self._max_tokens if reaches_on else self.length
        return self._score(self._totals[0], length) > self._done[-1].score

    def _score(self, total: np.float32, length: int) -> float:
        return float(total / np.float32(length**self._settings.length_penalty))


def banned_by_ngrams(tokens: Sequence[int] | npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Tokens that would complete a run of `size` tokens that `tokens` (T,) hold already; some may come twice.

    transformers counts the decoder's start token among them, and nothing of what an encoder has read.
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
    """Rows, columns and values of the `count` highest of (B, V), the highest first; none that is forbidden."""
    flat = scores.reshape(-1)
    places = _promising(flat, count)
    places = places[np.lexsort((places, -flat[places]))][:count]
    places = places[np.isfinite(flat[places])]
    rows, columns = np.divmod(places, scores.shape[1])
    return rows, columns.astype(np.int32), flat[places]


def _promising(flat: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Places among which the `count` highest are: those blocks whose highest are the highest, and the rest behind them.

    A third of the time that `argpartition` of all takes.
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
