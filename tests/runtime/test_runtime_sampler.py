import math
from dataclasses import replace
from typing import Any

import pytest

from gladstone.chat.messages import Message
from gladstone.errors import ConfigError
from runtime.engine import Engine
from runtime.sampling.sampler import MAX_SEED, Sampling

LIVELY = Sampling(temperature=1.2, top_k=0, top_p=1.0, min_p=0.0, max_tokens=24)
QUESTION = [Message("user", "Tell me something surprising about the human body.")]


def answer(engine: Engine, sampling: Sampling) -> str:
    engine.clear_cache()
    return engine.complete(engine.prompt_tokens(QUESTION), sampling).text


def test_every_wrong_setting_is_named_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=math.nan, top_k=-1, top_p=0.0, min_p=2.0, repeat_penalty=0.0, seed=-5, max_tokens=0)
    assert str(caught.value) == (
        "the sampling settings cannot be used (7 problems):\n"
        "  - temperature is nan, expected 0 (greedy) to 100\n"
        "  - top_k is -1, expected 0 (all tokens) or more\n"
        "  - top_p is 0.0, expected more than 0, at most 1 (all tokens)\n"
        "  - min_p is 2.0, expected 0 (all tokens) to 1\n"
        "  - repeat_penalty is 0.0, expected 0.1 to 10 (1 is no penalty)\n"
        f"  - seed is -5, expected 0 to {MAX_SEED}\n"
        "  - max_tokens is 0, expected 1 or more"
    )


@pytest.mark.parametrize("bad", [{"stop": ("",)}, {"seed": 2**32 - 1}, {"temperature": math.inf}, {"top_k": 2**31}])
def test_settings_that_llama_cpp_would_take_for_something_else_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        replace(Sampling(), **bad)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    first = answer(engine, replace(LIVELY, seed=7))
    assert answer(engine, replace(LIVELY, seed=7)) == first
    assert answer(engine, replace(LIVELY, seed=8)) != first


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_filter_at_its_narrowest_gives_the_greedy_text(engine: Engine, narrow: dict[str, Any]) -> None:
    assert answer(engine, replace(LIVELY, **narrow)) == answer(engine, Sampling(max_tokens=LIVELY.max_tokens))


def test_a_repeat_penalty_changes_the_greedy_text(engine: Engine) -> None:
    plain = Sampling(max_tokens=24)
    assert answer(engine, replace(plain, repeat_penalty=2.0)) != answer(engine, plain)


def test_a_temperature_just_above_zero_gives_the_greedy_text(engine: Engine) -> None:
    assert answer(engine, replace(LIVELY, temperature=1e-4)) == answer(engine, Sampling(max_tokens=24))
