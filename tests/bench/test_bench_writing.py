"""Texts in every writing: what the metrics see of them, and that English is scored as everybody scores it."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.metrics.metrics import METRICS, score_bleu, score_rouge, score_token_f1
from bench.metrics.tokenisers import splits
from bench.metrics.writing_systems import detect_writing_systems, has_mecab, unicode_tokens

TEXTS = {
    "russian": "Инсулин снижает уровень сахара в крови.",
    "hindi": "रक्त शरीर में बहने वाला द्रव है।",
    "thai": "อินซูลินลดระดับน้ำตาลในเลือด",
    "arabic": "الْأَنْسُولِينُ يُخَفِّضُ مُسْتَوَى السُّكَّرِ",
    "persian": "قلب می‌تپد و خون را می‌رساند",
    "hebrew": "הלב מזרים דם לכל הגוף",
    "greek": "Η καρδιά αντλεί το αίμα.",
    "korean": "심장은 온몸에 피를 보낸다.",
    "chinese": "心脏把血液送到全身。",
    "japanese": "心臓は血液を全身に送ります。",
    "khmer": "បេះដូងបូមឈាមទៅកាន់រាងកាយ",
    "tamil": "இதயம் இரத்தத்தை உடல் முழுவதும் அனுப்புகிறது",
    "french": "Le cœur pompe le sang oxygéné vers les artères.",
    "vietnamese": "Tim bơm máu đi khắp cơ thể.",
    "emoji": "❤️🩸👍🏽🫀💉",
    "digits": "120 80 37 5",
    "arabic digits": "١٢٠ ٨٠ ٣٧ ٥",
    "signs": "?! ≥ ±",
}
ENGLISH = [
    "The patient’s β-blocker (5 µg) lowers the heart rate; it isn't an α-agonist.",
    "Ménière's disease is treated with diuretics.",
    "aspirin",
    "Sjögren",
    "It failed: failing, fails & failed — at 37 °C.",
]
SAID = [
    "A beta-blocker lowers heart rates",
    "Meniere's diseases are treated",
    "Aspirins.",
    "Sjogren",
    "It was failing.",
]


@pytest.mark.parametrize("language", list(TEXTS))
def test_a_text_that_is_its_own_reference_is_whole_in_every_metric(language: str) -> None:
    text = TEXTS[language]
    for name, metric in METRICS.items():
        found = metric.score([text, text], [text, text])
        assert found.unseen == ""
        assert found.scores == pytest.approx((1.0, 1.0)), name
        assert float(found.statistic(found.table.sum(axis=0))) == pytest.approx(1.0), name


@pytest.mark.parametrize("language", [name for name in TEXTS if "digits" not in name])
def test_an_answer_in_other_words_scores_less_and_one_in_other_letters_nothing(language: str) -> None:
    text = TEXTS[language]
    half = text[: len(text) // 2]
    other = "Quite another." if text != TEXTS["french"] else "Совсем другое"
    for name in ("rouge1", "rougeL", "token_f1"):
        part, none = METRICS[name].score([half, other], [text, text]).scores
        assert part is not None
        assert 0 < part < 1, name
        assert none == 0, name


def test_english_is_scored_as_rouge_score_sacrebleu_and_squad_do_by_default() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    pairs = list(zip(SAID, ENGLISH, strict=True))
    for kind in kinds:
        theirs = [scorer.score(reference, answer)[kind].fmeasure for answer, reference in pairs]
        assert list(score_rouge(kind, SAID, ENGLISH).scores) == theirs
    ours = score_bleu(SAID, ENGLISH)
    whole = BLEU().corpus_score(SAID, [ENGLISH]).score
    assert float(ours.statistic(ours.table.sum(axis=0))) * 100 == pytest.approx(whole)
    single = BLEU(effective_order=True)
    assert list(ours.scores) == [single.sentence_score(answer, [ref]).score / 100 for answer, ref in pairs]
    assert [each.tokenisers.bleu for each in splits(ENGLISH)] == ["13a"]
    assert score_token_f1(["the β-blocker!"], ["A β-blocker"] * 1).scores == (1.0,)


def test_marks_and_letters_of_no_script_are_dropped() -> None:
    assert unicode_tokens(TEXTS["hindi"]) == ["रक्त", "शरीर", "में", "बहने", "वाला", "द्रव", "है"]
    assert unicode_tokens("الْقَلْبُ") == ["الْقَلْبُ"]
    assert unicode_tokens("น้ำ") == unicode_tokens(unicodedata.normalize("NFKD", "น้ำ"))
    assert all(unicodedata.category(char) for char in unicode_tokens("น้ำ")[0])
    assert unicode_tokens("می\u200cخواهم") == unicode_tokens("میخواهم")
    assert unicode_tokens("ＣＴ検査") == ["ct", "検", "査"]


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_no_letter_digit_or_mark_of_a_text_is_lost_between_its_tokens(text: str) -> None:
    from bench.metrics.writing_systems import folded

    wanted = Counter(char for char in folded(text) if unicodedata.category(char) in {*LETTERS, "Mn", "Mc"})
    assert Counter(char for char in "".join(unicode_tokens(text)) if char in wanted) == wanted


LETTERS = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No")


@given(st.lists(st.text(max_size=12), min_size=2, max_size=5))
@settings(max_examples=80, deadline=None)
def test_whatever_a_reference_holds_its_own_text_is_whole_or_has_no_score(texts: list[str]) -> None:
    for name in ("rouge1", "rougeL", "token_f1", "exact_match", "bleu"):
        scores = METRICS[name].score(texts, texts).scores
        assert all(score is None or score == pytest.approx(1.0) for score in scores), name


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    texts = [TEXTS["french"], TEXTS["vietnamese"], TEXTS["korean"], TEXTS["hindi"]]
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    for name, metric in METRICS.items():
        assert metric.score(apart, texts).scores == pytest.approx((1.0,) * 4), name


def test_a_set_of_several_languages_is_read_row_by_row_and_says_so() -> None:
    references = ["The heart is a pump.", "Sjögren", TEXTS["russian"], TEXTS["thai"], TEXTS["chinese"], ""]
    found = {each.title: (each.rows, each.tokenisers.rouge, each.tokenisers.bleu) for each in splits(references)}
    assert found["Cyrillic"] == (1, "Unicode words", "intl")
    assert found["Thai"][2] == "char"
    assert found["Han"][2] == "zh"
    assert sum(rows for rows, *_ in found.values()) == 5
    scores = METRICS["rouge1"].score(references, references).scores
    assert scores[2:5] == (1.0, 1.0, 1.0)
    assert scores[5] is None


def test_a_row_of_han_alone_is_read_as_the_japanese_rows_beside_it() -> None:
    kinds = [writing.kind for writing in detect_writing_systems(("急性心不全", TEXTS["japanese"], "インスリン"))]
    assert kinds == ["japanese"] * 3
    wanted = "ja-mecab" if has_mecab("ja") else "char"
    assert [each.tokenisers.bleu for each in splits(["急性心不全", TEXTS["japanese"]])] == [wanted]


def test_a_german_set_is_not_stemmed_as_english_though_some_rows_are_ascii() -> None:
    rows = ("Die Niere filtert das Blut.", "Die Lunge füllt sich mit Luft.", "Das Herz schlägt.", "Wasser")
    assert {writing.kind for writing in detect_writing_systems(rows)} == {"latin"}


def test_runs_longer_than_every_reference_give_no_figure_instead_of_0() -> None:
    for name in ("rouge2", "bleu"):
        found = METRICS[name].score(["да", "нет"], ["да", "нет"])
        assert "no reference has" in found.unseen
    some = METRICS["rouge2"].score(["да", "да и нет"], ["да", "да и нет"])
    assert (some.unseen, some.scores) == ("", (0.0, 1.0))
    assert "1 of 2 references" in some.remark
    assert METRICS["rouge1"].score(["да", "нет"], ["да", "нет"]).unseen == ""
    assert "contain text" in METRICS["token_f1"].score(["", "a"], ["", " "]).unseen
