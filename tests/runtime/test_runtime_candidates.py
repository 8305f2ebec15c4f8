import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from gladstone.chat.messages import Message
from gladstone.llamacpp.model import Model
from runtime.engine import Engine
from runtime.sampling.candidates import Candidates, likeliest
from runtime.sampling.sampler import SamplerChain, Sampling

SETTINGS = [
    Sampling(repeat_penalty=1.3),
    Sampling(temperature=0.8, repeat_penalty=1.2, repeat_window=20, seed=3),
    Sampling(temperature=0.3, top_p=0.9, repeat_penalty=1.1, seed=4),
    Sampling(temperature=1.0, top_k=5, typical_p=0.7, frequency_penalty=0.4, presence_penalty=0.3, seed=5),
    Sampling(temperature=1.5, top_k=60, top_p=1.0, min_p=0.0, dry_multiplier=0.8, seed=6),
    Sampling(temperature=1.2, xtc_probability=0.5, xtc_threshold=0.05, presence_penalty=0.1, seed=7),
]


@pytest.fixture(scope="module")
def model(smollm: Path) -> Iterator[Model]:
    with Model(smollm, vocab_only=True) as model:
        yield model


@settings(max_examples=200, deadline=None)
@given(
    stn.arrays(np.float32, st.integers(1, 400), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 7.0])),
    st.integers(1, 500),
)
def test_no_likelier_token_is_left_out(logits: Any, count: int) -> None:
    places, _least = likeliest(logits, count)
    finite = np.sort(logits[logits > -np.inf])[::-1]
    assert list(places) == sorted(set(places))
    assert (logits[places] > -np.inf).all()
    least = min(count, len(finite))
    assert sorted(logits[places], reverse=True)[:least] == finite[:least].tolist()


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
def test_few_candidates_give_the_tokens_that_all_give(model: Model, sampling: Sampling) -> None:
    chance = np.random.default_rng(0)
    prompt = [int(token) for token in chance.integers(0, model.vocab_size, 100)]
    with SamplerChain(sampling, model, prompt) as few, SamplerChain(sampling, model, prompt) as whole:
        assert few._candidates is not None
        whole._candidates = Candidates(whole._lib, model.vocab_size)
        for _ in range(100):
            logits = (chance.standard_normal(model.vocab_size) * 3).astype(np.float32)
            # what was said lately is likely again, so that penalties decide
            logits[[*prompt[-80:], *chance.integers(0, 100, 20)]] += 8
            token = few.sample(None, 0, logits)  # type: ignore[arg-type]
            assert (logits > logits[token]).sum() < 300, "an unlikely token"
            assert whole.sample(None, 0, logits) == token  # type: ignore[arg-type]
            prompt.append(token)


@pytest.mark.parametrize(
    "change",
    [{}, {"top_k": 0}, {"repeat_penalty": 0.9}, {"presence_penalty": -1.0}, {"top_n_sigma": 1.0}, {"mirostat": 2},
     {"logit_bias": ((5, 3.0),)}, {"top_k": 5000}],
    ids=str,
)  # fmt: skip
def test_where_any_token_can_be_chosen_all_are_looked_at(model: Model, change: dict[str, Any]) -> None:
    penalty = 1.1 if change else 1.0  # without one the whole vocabulary costs no more
    sampling = dataclasses.replace(Sampling(temperature=0.8, repeat_penalty=penalty), **change)
    with SamplerChain(sampling, model) as chain:
        assert chain._candidates is None


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
def test_texts_are_those_of_llama_cpps_own_way(engine: Engine, sampling: Sampling) -> None:
    prompt = engine.prompt_tokens([Message("user", "Tell me something surprising about the human body.")])
    few = dataclasses.replace(sampling, max_tokens=24)
    engine.clear_cache()
    text = engine.complete(prompt, few).text
    engine.clear_cache()
    # a bias of nothing changes nothing, but llama.cpp looks at the whole vocabulary for it
    assert engine.complete(prompt, dataclasses.replace(few, logit_bias=((5, 0.0),))).text == text
