"""Beam search against transformers' own, against all texts there are, and against its own promises."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gladstone.errors import ConfigError
from runtime.sampling.beam_search import Beams, BeamSearch, Hypothesis, banned_by_ngrams
from tests.runtime.t5_models import generated_beams, tiny_torch

START, END = 0, 1
Logits = npt.NDArray[np.float32]


def run(search: BeamSearch, logits_of: Callable[[npt.NDArray[Any]], Logits]) -> list[Hypothesis]:
    """Search to the end with logits (B, V) of rows of tokens (B, T)."""
    rows = np.array([[START]])
    while not search.finished:
        moves = search.step(logits_of(rows))
        rows = np.concatenate([rows[moves.parents], moves.tokens[:, None]], axis=1)
    return search.hypotheses


def torch_logits(model: Any, prompt: list[int]) -> Callable[[npt.NDArray[Any]], Logits]:
    import torch

    with torch.no_grad():
        encoded = model.encoder(torch.tensor([prompt]))[0]

    def logits_of(rows: npt.NDArray[Any]) -> Logits:
        states = encoded.expand(len(rows), -1, -1)
        with torch.no_grad():
            found = model(encoder_outputs=(states,), decoder_input_ids=torch.from_numpy(rows)).logits[:, -1]
        logits: Logits = found.numpy()
        return logits

    return logits_of


def random_table(seed: int, vocabulary: int, spread: float = 2.0) -> Callable[[npt.NDArray[Any]], Logits]:
    """A model whose next token depends on the last two."""
    table = np.random.default_rng(seed).standard_normal((vocabulary, vocabulary, vocabulary)).astype(np.float32)

    def logits_of(rows: npt.NDArray[Any]) -> Logits:
        before = rows[:, -2] if rows.shape[1] > 1 else rows[:, -1]
        found: Logits = table[before, rows[:, -1]] * np.float32(spread)
        return found

    return logits_of


STOPS: tuple[Any, ...] = (False, True, "never")
SETTINGS = [
    Beams(count, penalty, stops, ngram)
    for count, penalty, stops, ngram in itertools.product((2, 4), (0.6, 1.0, 2.0), STOPS, (0, 3))
]
RARE_SETTINGS = [
    Beams(3, 0.0), Beams(5, -1.0, "never"), Beams(4, -0.5), Beams(4, 0.0, True, 1), Beams(4, 1.0, False, 2),
    Beams(4, repetition_penalty=1.4), Beams(3, 2.0, "never", 2, 0.7),
]  # fmt: skip


@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n < 2 else pytest.mark.long) for n in range(10)])
def test_it_finds_what_transformers_finds(number: int) -> None:
    model = tiny_torch(seed=number)
    rng = np.random.default_rng(number)
    lengths = set()
    for beams in SETTINGS + RARE_SETTINGS:
        prompt = [*rng.integers(2, model.config.vocab_size, int(rng.integers(1, 12))).tolist(), END]
        found = run(BeamSearch(beams, START, [END], 12), torch_logits(model, prompt))
        expected = generated_beams(model, prompt, beams, 12)
        assert [each.tokens for each in found] == [tokens for tokens, _ in expected], beams
        np.testing.assert_allclose([each.score for each in found], [score for _, score in expected], atol=1e-4)
        lengths |= {len(each.tokens) for each in found if each.ended}
    assert len(lengths) > 3  # they end sooner and later, or the penalty would never have counted


def test_several_end_tokens_end_texts_as_in_transformers() -> None:
    model, ends = tiny_torch(seed=3), [END, 7, 11]
    for prompt in ([5, 6, END], [9, 8, 7, END], [20, END]):
        found = run(BeamSearch(Beams(3), START, ends, 10), torch_logits(model, prompt))
        expected = generated_beams(model, prompt, Beams(3), 10, eos_token_id=ends)
        assert [each.tokens for each in found] == [tokens for tokens, _ in expected]


def test_as_many_go_on_even_if_all_of_the_best_end() -> None:
    search, ends = BeamSearch(Beams(4, early_stopping="never"), START, [1, 2, 3], 9), [1, 2, 3]
    logits_of = random_table(4, 30)
    rows = np.array([[START]])
    for _ in range(8):
        logits = logits_of(rows)
        logits[:, ends] = logits.max() + np.arange(3)
        moves = search.step(logits)
        assert search.finished or len(moves.tokens) == search.running == 4
        if search.finished:
            break
        rows = np.concatenate([rows[moves.parents], moves.tokens[:, None]], axis=1)
    assert rows.shape[1] > 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([False, "never"]))
def test_with_room_for_all_it_finds_the_best_of_all(seed: int, penalty: float, stops: Any) -> None:
    vocabulary, most, count = 6, 3, 36  # no more than 25 texts go on at a time
    logits_of = random_table(seed, vocabulary)
    found = run(BeamSearch(Beams(count, penalty, stops), START, [END], most), logits_of)
    scores = _all_scores(logits_of, vocabulary, most, penalty)
    for each in found:
        assert each.score == pytest.approx(scores[each.tokens], abs=1e-4)
    assert [each.score for each in found] == pytest.approx(sorted(scores.values(), reverse=True)[:count], abs=1e-4)


def _all_scores(logits_of: Callable[..., Logits], vocabulary: int, most: int, penalty: float) -> dict[Any, float]:
    """Score of each text that ended or has `most` tokens, computed alone."""
    scores = {}
    for length in range(1, most + 1):
        for text in itertools.product(range(vocabulary), repeat=length):
            if END in text[:-1] or (length < most and text[-1] != END):
                continue
            total = 0.0
            for place, token in enumerate(text):
                row = logits_of(np.array([[START, *text[:place]]]))[0].astype(np.float64)
                total += row[token] - np.log(np.exp(row).sum())
            scores[text] = total / length**penalty
    return scores


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.sampled_from([True, False, "never"]))
def test_hypotheses_are_whole_distinct_and_in_order(seed: int, count: int, ngram: int, stops: Any) -> None:
    found = run(BeamSearch(Beams(count, 1.0, stops, ngram), START, [END], 9), random_table(seed, 24))
    assert 1 <= len(found) <= count
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len({each.tokens for each in found}) == len(found)
    for each in found:
        assert each.ended == (each.tokens[-1] == END)
        assert END not in each.tokens[:-1]
        assert each.ended or len(each.tokens) == 9
        runs = [each.tokens[at : at + ngram] for at in range(len(each.tokens) - ngram + 1)]
        assert len(set(runs)) == len(runs)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 6))
def test_banned_tokens_are_those_that_transformers_bans(tokens: list[int], size: int) -> None:
    import torch
    from transformers import NoRepeatNGramLogitsProcessor

    banned = set(banned_by_ngrams(tokens, size).tolist())
    if len(tokens) + 1 < size or not tokens:
        assert not banned
        return
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), torch.zeros(1, 5))
    assert banned == set(torch.nonzero(torch.isinf(scores[0])).flatten().tolist())


def test_size_0_bans_nothing() -> None:
    assert not banned_by_ngrams([1, 1, 1], 0).size


def test_one_beam_is_the_greedy_text() -> None:
    table = random_table(5, 30)

    def logits_of(rows: npt.NDArray[Any]) -> Logits:
        logits = table(rows)
        logits[:, END] = -100  # an end would be kept beside what goes on, and may score worse
        return logits

    greedy = [START]
    while len(greedy) < 12:
        greedy.append(int(logits_of(np.array([greedy]))[0].argmax()))
    found = run(BeamSearch(Beams(1), START, [END], 11), logits_of)
    assert list(found[0].tokens) == greedy[1:]


def test_the_logits_are_left_as_they_are() -> None:
    logits = random_table(1, 30)(np.array([[START]]))
    before = logits.copy()
    BeamSearch(Beams(4, no_repeat_ngram=1, repetition_penalty=1.2), START, [END], 5).step(logits)
    np.testing.assert_array_equal(logits, before)


def test_of_a_search_given_up_the_ended_come_before_the_running() -> None:
    search, logits_of = BeamSearch(Beams(4), START, [END], 50), random_table(2, 30, spread=1.0)
    assert [each.tokens for each in search.hypotheses] == [()]
    rows = np.array([[START]])
    for step in range(1, 4):
        logits = logits_of(rows)
        logits[:, END] = logits.max()  # an end is among the best of each step
        moves = search.step(logits)
        rows = np.concatenate([rows[moves.parents], moves.tokens[:, None]], axis=1)
        found = search.hypotheses
        assert len(found) == 4
        ended = [each.ended for each in found]
        assert ended == sorted(ended, reverse=True)
        assert ended.count(True) >= 1
        running = [each.tokens for each in found if not each.ended]
        assert running == [tuple(row[1:].tolist()) for row in rows[: len(running)]]
        assert all(len(tokens) == step for tokens in running)


def test_what_cannot_be_a_step_is_refused() -> None:
    search = BeamSearch(Beams(4), START, [END], 1)
    with pytest.raises(ValueError, match="2 beams for a search that has 1 beams running"):
        search.step(np.zeros((2, 30), dtype=np.float32))
    search.step(random_table(0, 30)(np.array([[START]])))
    assert search.finished
    with pytest.raises(ValueError, match="is finished"):
        search.step(np.zeros((4, 30), dtype=np.float32))
    for ends, most in (([], 5), ([END], 0)):
        with pytest.raises(ValueError, match="room for one token"):
            BeamSearch(Beams(4), START, ends, most)


@pytest.mark.parametrize("vocabulary", [30, 255, 4096, 5001, 32_128])
def test_of_a_large_vocabulary_the_best_are_found(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    for beams in (Beams(1), Beams(4), Beams(8)):
        search = BeamSearch(beams, START, [END], 100)
        logits = rng.standard_normal((1, vocabulary), dtype=np.float32)
        logits[:, END] = -50
        order = np.argsort(-logits[0])
        assert search.step(logits).tokens.tolist() == order[: beams.count].tolist()
        first = logits[0, order[: beams.count]]
        more = rng.standard_normal((beams.count, vocabulary), dtype=np.float32)
        more[:, END] = -50
        moves = search.step(more)
        totals = first[:, None] + more - np.log(np.exp(more).sum(axis=1, keepdims=True))
        best = np.argsort(-totals, axis=None)[: beams.count]
        assert (moves.parents * vocabulary + moves.tokens).tolist() == best.tolist()


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Beams(0, float("nan"), "always", -1, 0.0)  # type: ignore[arg-type]
    for name in ("count is 0", "length_penalty is nan", "early_stopping is 'always'", "no_repeat_ngram is -1"):
        assert name in str(caught.value)
    assert "repetition_penalty is 0.0" in str(caught.value)
    for wrong in ({"count": True}, {"count": 0}, {"early_stopping": 1}, {"length_penalty": 7.0}):
        with pytest.raises(ConfigError):
            Beams(**wrong)
