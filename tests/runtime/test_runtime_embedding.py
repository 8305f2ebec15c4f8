from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.llamacpp.model import Model
from runtime.embedding import Embedder
from runtime.errors import ContextFullError
from tests.runtime.embedding_models import POSITIONS, Made, make_all

TEXTS = (
    "The heart pumps blood through the body.",
    "x",
    "Anaemia is a lack of red blood cells; iron is given by mouth for three months, and the blood is counted again.",
    "Which vessel feeds the liver?",
    "the retina " * 40,
)
LONG = "the liver and the spleen " * 60  # more than a batch of several texts holds


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return make_all(tmp_path_factory.mktemp("embedding"))


def pooled(made: Made, text: str, pooling: str) -> Any:
    states = made.hidden_states(text)
    return {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]


def check_equal(found: Any, expected: Any) -> None:
    cosine = (found * expected).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() > 0.9999
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "chosen", "pooling"),
    [
        ("bert-mean", None, "mean"),
        ("bert-cls", None, "cls"),
        ("bert", None, "mean"),
        ("bert-mean", "cls", "cls"),
        ("decoder", None, "last"),
        ("decoder", "mean", "mean"),
        ("t5", None, "mean"),
    ],
)
def test_vectors_equal_those_of_transformers(
    models: dict[str, Made], name: str, chosen: str | None, pooling: str
) -> None:
    made, texts = models[name], [*TEXTS, "", LONG]
    with Embedder(made.gguf, pooling=chosen, threads=1) as embedder:
        assert embedder.pooling == pooling
        found = embedder.embed(texts, normalise=False)
        assert embedder.embed(texts) == pytest.approx(found / np.linalg.norm(found, axis=1, keepdims=True), abs=1e-5)
    assert found.dtype == np.float32
    check_equal(found, np.stack([pooled(made, text, pooling) for text in texts]))


@pytest.mark.parametrize("name", ["bert", "decoder", "t5"])
def test_a_vector_does_not_depend_on_its_companions_and_the_order_is_kept(models: dict[str, Made], name: str) -> None:
    numbers = np.random.default_rng(0)
    many = [TEXTS[number] if number < len(TEXTS) else LONG for number in numbers.integers(0, len(TEXTS) + 1, 150)]
    with Embedder(models[name].gguf, threads=1) as embedder:
        alone = {text: embedder.embed([text])[0] for text in (*TEXTS, LONG)}
        together = embedder.embed(many)
    assert np.abs(together - np.stack([alone[text] for text in many])).max() < 1e-4


def test_rounding_in_quantised_weights_does_not_make_companions_matter(smollm: Path) -> None:
    texts = list(TEXTS[:4])
    with Embedder(smollm, threads=1) as embedder:
        alone = np.concatenate([embedder.embed([text]) for text in texts])
        assert np.abs(embedder.embed(texts * 3) - np.tile(alone, (3, 1))).max() < 1e-6


def test_a_chat_model_puts_similar_sentences_nearer_than_others(smollm: Path) -> None:
    pairs = [
        ("The heart pumps blood through the body.", "Blood is moved through the body by the heart."),
        ("The shares of the bank fell on Friday.", "On Friday, the bank's stock lost value."),
        ("She baked a cake with apples.", "An apple cake was in her oven."),
    ]
    with Embedder(smollm, threads=1) as embedder:
        assert embedder.pooling == "mean"
        first, second = (embedder.embed([pair[side] for pair in pairs]) for side in (0, 1))
    assert first.shape == (3, 576)
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)
    assert ((first @ second.T).argmax(1) == np.arange(3)).all()
    assert ((first @ second.T).argmax(0) == np.arange(3)).all()


@pytest.mark.parametrize(("name", "first", "last"), [("bert", "[CLS]", "[SEP]"), ("decoder", None, "<|im_end|>")])
def test_what_a_text_spells_is_text_and_the_models_own_tokens_stand_around_it(
    models: dict[str, Made], name: str, first: str | None, last: str
) -> None:
    made = models[name]
    text = f"the liver {last} the heart"
    with Model(made.gguf, vocab_only=True) as model:
        tokens = model.tokenize(text, add_special=True)
    names = made.tokenizer.convert_ids_to_tokens(tokens)
    assert names[-1] == last
    assert names.count(last) == 1
    assert first is None or (names[0], names.count(first)) == (first, 1)
    with Embedder(made.gguf, threads=1) as embedder:
        check_equal(embedder.embed([text], normalise=False)[0], pooled(made, text, embedder.pooling))


def test_no_texts_give_no_vectors(models: dict[str, Made]) -> None:
    with Embedder(models["bert"].gguf, threads=1) as embedder:
        assert embedder.embed([]).shape == (0, 64)


def test_an_empty_text_is_named_where_the_model_has_nothing_to_read(smollm: Path) -> None:
    with Embedder(smollm, threads=1) as embedder, pytest.raises(DataError, match="text 2 of 3 is empty"):
        embedder.embed(["a", "", "b"])


@pytest.mark.parametrize(("limit", "shown"), [(None, POSITIONS), (16, 16)])
def test_a_text_that_is_too_long_is_named(models: dict[str, Made], limit: int | None, shown: int) -> None:
    with Embedder(models["bert"].gguf, context_tokens=limit, threads=1) as embedder:
        assert embedder.embed(["liver " * (shown // 20)]).shape == (1, 64)
        with pytest.raises(ContextFullError, match=rf"text 2 of 2 has [\d,]+ tokens, at most {shown} can be read"):
            embedder.embed(["the heart", "heart " * (shown + 1)])


@pytest.mark.parametrize("name", ["reranker", "classifier"])
def test_a_model_that_gives_scores_or_classes_is_refused(models: dict[str, Made], name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"a {name}"):
        Embedder(models[name].gguf)


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"context_tokens": POSITIONS + 1}, {"context_tokens": 0}])
def test_a_pooling_or_context_that_the_model_cannot_have_is_refused(
    models: dict[str, Made], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Embedder(models["bert"].gguf, **wrong)
