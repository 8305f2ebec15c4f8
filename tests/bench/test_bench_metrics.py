import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.metrics.evaluate_metrics import load_metrics
from bench.metrics.metrics import METRICS, corpus_bleu, score_bleu, token_f1
from gladstone.errors import UnsupportedError

TEXT = st.text(max_size=60)

LOCAL_METRIC = """
import datasets
import evaluate


class SameLength(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return RESULT
"""


def write_metric(folder: Path, result: str) -> str:
    path = folder / "same_length.py"
    path.write_text(LOCAL_METRIC.replace("RESULT", result))
    return str(path)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_score_and_every_figure_lies_between_0_and_1(pairs: list[tuple[str, str]]) -> None:
    answers, references = zip(*pairs, strict=True)
    for metric in METRICS.values():
        scored = metric.score(answers, references)
        assert len(scored.scores) == len(pairs)
        assert all(0 <= score <= 1 for score in scored.scores if score is not None), metric.info.name
        seen = [text.strip() != "" for text in references]
        assert [score is not None for score in scored.scores] == seen, metric.info.name
        assert len(scored.table) == sum(seen)
        if not scored.unseen:
            assert 0 <= float(scored.statistic(scored.table.sum(axis=0))) <= 1, metric.info.name


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_answers_does_not_change_a_figure(
    pairs: list[tuple[str, str]], shuffler: random.Random
) -> None:
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    for metric in METRICS.values():
        figures = []
        for order in (pairs, shuffled):
            scored = metric.score(*zip(*order, strict=True))
            figures.append(-1 if scored.unseen else float(scored.statistic(scored.table.sum(axis=0))))
        assert figures[0] == pytest.approx(figures[1], abs=1e-12)


@pytest.mark.parametrize("name", list(METRICS))
def test_the_reference_itself_scores_1(name: str) -> None:
    text = "Aortic stenosis narrows the outflow of the left ventricle."
    scored = METRICS[name].score([text, text], [text, text])
    assert scored.scores == pytest.approx((1.0, 1.0))


def test_corpus_bleu_equals_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU

    choose = random.Random(1)
    words = ["a", "b", "c", "d", "e", "the", "heart", "pumps", "blood"]
    for _ in range(150):
        count = choose.choice([1, 2, 5])
        answers, references = (
            [" ".join(choose.choices(words, k=choose.randint(least, 9))) for _ in range(count)] for least in (0, 1)
        )
        ours = float(corpus_bleu(score_bleu(answers, references).table.sum(axis=0)))
        assert ours * 100 == pytest.approx(BLEU().corpus_score(answers, [references]).score, abs=1e-9)


def test_token_f1_of_two_empty_texts_is_1_and_of_one_is_0() -> None:
    assert token_f1("", "the") == 1.0
    assert token_f1("...", "heart") == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # evaluate imports datasets and with it much that warns
def test_a_local_metric_script_is_loaded_and_has_no_better_or_worse(tmp_path: Path) -> None:
    name = write_metric(tmp_path, '{"same_length": float(len(predictions[0]) == len(references[0])), "other": 3}')
    metrics = load_metrics([name, "rouge1"])
    assert list(metrics) == [*METRICS, name]
    assert metrics[name].info.higher_is_better is None
    assert metrics[name].score(["abc", "a"], ["xyz", "xyz"]).scores == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_foreign_metric_that_sees_no_cyrillic_gives_no_figure(tmp_path: Path) -> None:
    code = '{"same_length": float(len(set(predictions[0].encode("ascii", "ignore"))))}'
    metric = load_metrics([write_metric(tmp_path, code)])
    score = next(each.score for name, each in metric.items() if name.endswith(".py"))
    assert score(["the", "heart"], ["the", "heart"]).unseen == ""
    assert "in this script" in score(["кровь", "сердце"], ["кровь", "сердце"]).unseen
    seen = load_metrics([write_metric(tmp_path, '{"same_length": float(len(predictions[0]) == len(references[0]))}')])
    score = next(each.score for name, each in seen.items() if name.endswith(".py"))
    assert score(["кровь", "сердце"], ["кровь", "сердце"]).unseen == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_metric_that_gives_no_single_number_is_refused_with_what_it_gave(tmp_path: Path) -> None:
    name = write_metric(tmp_path, '{"precision": 0.5, "recall": 0.5}')
    with pytest.raises(UnsupportedError, match=r"one finite number.*'same_length'.*precision, recall"):
        load_metrics([name])[name].score(["a"], ["b"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_metric_is_one_message_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnsupportedError) as caught:
        load_metrics(["no_such_metric"])
    message = str(caught.value)
    assert message.startswith(
        "--metric no_such_metric: not a built-in metric (rouge1, rouge2, rougeL, bleu, token_f1, exact_match)"
    )
    assert "path of a local metric script" in message
    assert "\n" not in message
