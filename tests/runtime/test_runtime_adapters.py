"""Adapters laid over a model, mixed, and changed from request to request without loading anything."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gladstone.chat.messages import Message
from gladstone.errors import ConfigError
from gladstone.llamacpp.lora import Lora
from runtime.engine import Completion, Engine, EngineOptions, Request, Sampling
from tests.runtime.test_runtime_batching import check_equal_but_for_ties

SHORT = Sampling(max_tokens=12, logprobs=5)
OPTIONS = EngineOptions(context_tokens=512, threads=1, slots=3, flash_attention=False)
WIDTH, LAYERS, RANK = 576, 30, 4


def write_adapter(path: Path, seed: int) -> Path:
    """An adapter of random numbers over every query projection of SmolLM2-135M."""
    import gguf

    chance = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)
    for layer in range(LAYERS):
        down = chance.standard_normal((RANK, WIDTH)) * 0.05
        up = chance.standard_normal((WIDTH, RANK)) * 0.5
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_a", down.astype(np.float32))
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_b", up.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return write_adapter(folder / "first.gguf", 1), write_adapter(folder / "second.gguf", 2)


@pytest.fixture(scope="module")
def engine(smollm: Path, adapters: tuple[Path, Path]) -> Iterator[Engine]:
    loras = (Lora(adapters[0], 1.0), Lora(adapters[1], 0.0))
    with Engine(smollm, EngineOptions(**{**OPTIONS.__dict__, "loras": loras})) as engine:
        yield engine


def ask(engine: Engine, scales: tuple[float, ...] | None) -> Completion:
    prompt = engine.prompt_tokens([Message("user", "What does the heart do?")])
    return engine.answer(Request(prompt, SHORT, adapters=scales))


def test_each_strength_gives_what_a_model_loaded_with_it_gives(
    smollm: Path, adapters: tuple[Path, Path], engine: Engine
) -> None:
    texts = {}
    for scales in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.7)):
        used = tuple(Lora(path, scale) for path, scale in zip(adapters, scales, strict=True) if scale)
        with Engine(smollm, EngineOptions(**{**OPTIONS.__dict__, "loras": used})) as alone:
            expected = ask(alone, None)
        assert ask(engine, scales).cached_tokens == 0, "what another adapter computed was taken for its own"
        engine.clear_cache()  # other cells in the cache round otherwise
        texts[scales] = ask(engine, scales).text
        assert texts[scales] == expected.text
    assert len(set(texts.values())) == 4
    engine.clear_cache()
    assert ask(engine, None).text == texts[1.0, 0.0], "those that the engine was given"
    engine.clear_cache()
    assert ask(engine, (0.0, 0.0)).text == texts[0.0, 0.0], "and back again"


def test_requests_of_several_adapters_at_a_time_do_not_mix(engine: Engine) -> None:
    sets = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    alone = []
    for scales in sets:
        engine.clear_cache()
        alone.append(ask(engine, scales))
    engine.clear_cache()
    prompt = engine.prompt_tokens([Message("user", "What does the heart do?")])
    answers = [engine.submit(Request(prompt, SHORT, adapters=scales)) for scales in sets]
    together = [answer.result() for answer in answers]
    assert [answer.cached_tokens for answer in together] == [0, 0, 0]
    for one, answer in zip(alone, together, strict=True):
        check_equal_but_for_ties(one, answer)


def test_scores_are_those_of_the_adapters_that_the_engine_was_given(smollm: Path, engine: Engine) -> None:
    turns = [Message("user", "What does the heart do?"), Message("assistant", "It pumps blood.")]
    with Engine(smollm, OPTIONS) as plain:
        assert abs(plain.answer_loss(turns).nats - engine.answer_loss(turns).nats) > 1


def test_a_wrong_number_of_strengths_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="1 scales for 2 adapters"):
        ask(engine, (1.0,))
