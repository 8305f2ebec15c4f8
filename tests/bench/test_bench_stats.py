from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.metrics.bootstrap import Bootstrap, compare, estimate, judge, mean, mean_table, perplexity, spread
from bench.metrics.metrics import METRICS
from bench.report.number_format import format_signed
from bench.results import Result

FAST = Bootstrap(resamples=200)
UNIT = st.floats(0, 1, allow_nan=False)
TEXT = st.text(alphabet="ab the.\n<é💉", max_size=30)


@given(st.lists(UNIT, min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_an_interval_of_scores_stays_between_0_and_1_and_holds_its_mean_or_touches_it(scores: list[float]) -> None:
    result = estimate(mean_table(scores), mean, FAST)
    assert -1e-9 <= result.low <= result.high <= 1 + 1e-9
    assert result.mean == pytest.approx(np.mean(scores))
    assert min(scores) - 1e-9 <= result.low
    assert result.high <= max(scores) + 1e-9


@given(st.lists(st.tuples(st.floats(0.1, 300), st.integers(1, 90)), min_size=2, max_size=30), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_items_does_not_matter(losses: list[tuple[float, int]], random: Random) -> None:
    shuffled = list(losses)
    random.shuffle(shuffled)
    first = estimate(np.array(losses, float), perplexity, FAST)
    second = estimate(np.array(shuffled, float), perplexity, FAST)
    assert second.low == pytest.approx(first.low, rel=1e-9)
    assert second.high == pytest.approx(first.high, rel=1e-9)
    assert second.mean == pytest.approx(first.mean, rel=1e-9)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_model_against_itself_is_not_distinguishable_by_any_metric(pairs: list[tuple[str, str]]) -> None:
    answers, references = zip(*pairs, strict=True)
    for metric in METRICS.values():
        scored = metric.score(answers, references)
        if scored.unseen:
            continue
        difference = compare(scored.table, scored.table, scored.statistic, FAST)
        assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
        judged = judge(replace(difference, n=10), metric.info.higher_is_better)
        assert judged.verdict == "not distinguishable"


def test_the_interval_covers_the_truth_in_93_to_97_of_100_simulated_benchmarks() -> None:
    generator = np.random.default_rng(3)
    bootstrap = Bootstrap(resamples=400)
    runs = 600
    covered = {"skewed scores": 0, "perplexity": 0, "paired difference": 0}
    for number in range(runs):
        bootstrap = Bootstrap(seed=number, resamples=400)
        scores = generator.beta(1, 4, 40)
        skewed = estimate(mean_table(list(scores)), mean, bootstrap)
        covered["skewed scores"] += skewed.low <= 0.2 <= skewed.high
        tokens = generator.integers(5, 80, 40)
        losses = np.column_stack([generator.gamma(4, 0.75, 40) * tokens, tokens])
        loss = estimate(losses, perplexity, bootstrap)
        covered["perplexity"] += loss.low <= np.exp(3) <= loss.high
        other = scores + generator.normal(0.05, 0.1, 40)
        gap = compare(mean_table(list(scores)), mean_table(list(other)), mean, bootstrap)
        covered["paired difference"] += gap.low <= 0.05 <= gap.high
    for name, count in covered.items():
        assert 0.93 <= count / runs <= 0.97, f"{name}: {count / runs:.3f}"


def test_two_equal_models_are_told_apart_in_at_most_one_of_twenty_trials_or_so() -> None:
    generator = np.random.default_rng(5)
    told_apart = 0
    for number in range(400):
        base = generator.beta(2, 5, 40)
        first, second = base + generator.normal(0, 0.1, (2, 40))
        gap = compare(mean_table(list(first)), mean_table(list(second)), mean, Bootstrap(seed=number, resamples=400))
        told_apart += judge(gap, True).verdict != "not distinguishable"
    assert told_apart / 400 <= 0.075


def test_textbook_bca_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(1).beta(1, 4, 60)
    ours = estimate(mean_table(list(scores)), mean, Bootstrap(resamples=20_000, expand=False))
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="BCa", random_state=0).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_textbook_bca_agrees_with_efrons_formula_written_out() -> None:
    # independent of our implementation: loops, and the definitions of z0 and a
    from statistics import NormalDist

    normal = NormalDist()
    scores = np.random.default_rng(2).beta(1, 4, 50)
    generator = np.random.default_rng(9)
    draws = np.array([generator.choice(scores, 50).mean() for _ in range(8000)])
    z0 = normal.inv_cdf(float((draws < scores.mean()).mean()))
    jackknife = np.array([np.delete(scores, place).mean() for place in range(50)])
    gaps = jackknife.mean() - jackknife
    a = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    expected = [np.quantile(draws, normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))) for z in (-1.96, 1.96)]
    ours = estimate(mean_table(list(scores)), mean, Bootstrap(resamples=8000, expand=False))
    assert [ours.low, ours.high] == pytest.approx(expected, abs=0.004)


def test_perplexity_weighs_tokens_and_not_rows() -> None:
    result = estimate(np.array([[10.0, 10], [90.0, 30]]), perplexity, FAST)
    assert result.mean == pytest.approx(np.exp(100 / 40))


def test_resampling_in_blocks_gives_as_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = mean_table([0.1, 0.5, 0.9, 0.3])
    monkeypatch.setattr("bench.metrics.bootstrap._BLOCK_CELLS", 28)
    result = estimate(table, mean, Bootstrap(resamples=100))
    assert result.low < result.mean < result.high


def test_one_item_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 items, not 1"):
        estimate(mean_table([0.5]), mean, FAST)


def test_models_on_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not the same items"):
        compare(mean_table([0.5, 0.1]), mean_table([0.5, 0.1, 0.2]), mean, FAST)


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "verdict"),
    [
        (0.1, 0.3, True, "better"),
        (0.1, 0.3, False, "worse"),
        (-0.3, -0.1, False, "better"),
        (-0.3, -0.1, True, "worse"),
        (-0.1, 0.3, True, "not distinguishable"),
        (0.0, 0.3, True, "not distinguishable"),
        (0.1, 0.3, None, "higher"),
        (-0.3, -0.1, None, "lower"),
    ],
)
def test_a_verdict_needs_an_interval_without_0(
    low: float, high: float, higher_is_better: bool | None, verdict: str
) -> None:
    assert judge(Result((low + high) / 2, low, high, 10), higher_is_better).verdict == verdict
    assert judge(Result((low + high) / 2, low, high, 9), higher_is_better).verdict == "too few answers to judge"


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.sampled_from([1, 1e-5, 1e-9]),
    st.integers(2, 40),
    st.sampled_from([True, False, None]),
)
def test_no_verdict_contradicts_the_interval_that_is_shown(
    bounds: list[float], size: float, n: int, higher_is_better: bool | None
) -> None:
    low, middle, high = sorted(bound * size for bound in bounds)
    verdict = judge(Result(middle, low, high, n), higher_is_better).verdict
    shown_low, shown_high = format_signed(low)[0], format_signed(high)[0]
    if n < 10:
        assert verdict == "too few answers to judge"
    elif verdict == "not distinguishable":
        assert low <= 1e-12
        assert high >= -1e-12
    else:
        # both ends that a reader sees lie on the verdict's side of 0
        up = {"better": bool(higher_is_better), "worse": not higher_is_better, "higher": True, "lower": False}[verdict]
        assert (shown_low, shown_high) == (("+", "+") if up else ("−", "−"))


def test_a_spread_is_median_and_extremes() -> None:
    found = spread([3.0, 1.0, 100.0])
    assert (found.median, found.low, found.high, found.n) == (3.0, 1.0, 100.0, 3)
