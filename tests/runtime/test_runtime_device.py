"""Models on a device with memory of its own: it computes what the processor computes, and holds what the fit says."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gladstone.chat.messages import Message
from gladstone.errors import UnsupportedError
from gladstone.llamacpp.backends import backend_id
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.devices import device_list, read_devices
from gladstone.llamacpp.library import library
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model
from runtime.embedding import Embedder
from runtime.engine import Completion, Engine, EngineOptions, Request, Sampling
from runtime.machine.fit import GPU_MARGIN_BYTES
from tests.device.rpc_device import MIB, Server, rpc_device
from tests.faults.tiny_ggufs import tiny_bert, tiny_bpe, tiny_t5
from tests.runtime.test_runtime_adapters import write_adapter
from tests.runtime.test_runtime_batching import check_equal_but_for_ties

pytestmark = pytest.mark.device
GREEDY = Sampling(max_tokens=12, logprobs=5)
OPTIONS = EngineOptions(context_tokens=256, threads=1)
ON_CPU = replace(OPTIONS, gpu_layers=0)
TEXT = "The heart moves the blood through the body and the lungs."
CLOSE = 0.02  # of the largest value: kernels of one llama.cpp, but batches may be divided in another way


@pytest.fixture
def device() -> Iterator[Server]:
    with rpc_device(2048 * MIB) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("tiny") / "tiny.gguf", tiny_bpe)


def _written(path: Path, make: Callable[..., Any]) -> Path:
    path.write_bytes(make().content())
    return path


def ask(engine: Engine, question: str = "What does the heart do?") -> Completion:
    return engine.answer(Request(engine.prompt_tokens([Message("user", question)]), GREEDY))


def answer_of(path: Path, options: EngineOptions) -> Completion:
    with Engine(path, options) as engine:
        return ask(engine)


def test_any_number_of_layers_gives_the_processors_answer(device: Server, smollm: Path) -> None:
    empty = device.allocated_bytes()
    with Engine(smollm, ON_CPU) as engine:
        expected = ask(engine)
        assert device.allocated_bytes() - empty < MIB, "without layers the device holds nothing"
    for layers, offload in ((12, True), ("auto", True), ("auto", False)):
        with Engine(smollm, replace(OPTIONS, gpu_layers=layers, kv_offload=offload)) as engine:  # type: ignore[arg-type]
            planned = engine.fit.devices[1]
            assert planned.layers == engine.fit.gpu_layers == (31 if layers == "auto" else layers)
            check_equal_but_for_ties(expected, ask(engine))
            used = device.allocated_bytes() - empty
            assert MIB < used < planned.needed_bytes - GPU_MARGIN_BYTES / 2, "the fit's figure is an upper bound"


def test_a_small_device_gets_the_layers_that_fit_and_one_too_small_is_not_touched(smollm: Path) -> None:
    expected = answer_of(smollm, ON_CPU)
    with rpc_device(GPU_MARGIN_BYTES + 90 * MIB) as device, Engine(smollm, OPTIONS) as engine:
        assert 0 < engine.fit.gpu_layers < engine.fit.all_layers
        assert device.endpoint in engine.fit.reason
        check_equal_but_for_ties(expected, ask(engine))
    with rpc_device(40 * MIB) as device:
        empty = device.allocated_bytes()
        with Engine(smollm, OPTIONS) as engine:
            assert engine.fit.gpu_layers == 0
            assert ask(engine).text == expected.text
            assert device.allocated_bytes() - empty < MIB
        with pytest.raises(UnsupportedError, match=r"31 GPU layers and a context of 256 .* What fits: 0 of 31 GPU"):
            Engine(smollm, replace(OPTIONS, gpu_layers=31))


@pytest.mark.long
def test_a_cache_in_memory_leaves_room_for_more_layers(smollm: Path) -> None:
    with rpc_device(GPU_MARGIN_BYTES + 150 * MIB):
        layers = {}
        for offload in (True, False):
            options = replace(OPTIONS, context_tokens=4096, kv_offload=offload, batch_tokens=128)
            with Engine(smollm, options) as engine:
                layers[offload] = engine.fit.gpu_layers
                assert ("in memory" in engine.fit.reason) != offload
                ask(engine)
        assert layers[True] < layers[False]


def test_what_the_device_cannot_hold_is_one_line_and_the_file_is_not_blamed(smollm: Path) -> None:
    with rpc_device(64 * MIB) as device:
        with pytest.raises(UnsupportedError, match=r"Q4_1\.gguf: not enough memory to load it: .*RPC\d.*\.") as caught:
            Model(smollm, gpu_layers=99)
        assert "\n" not in str(caught.value)
        with Model(smollm) as model, Context(model, 64) as context:
            context.decode([1], 0)
        assert device.process.poll() is None
    with rpc_device(130 * MIB), Model(smollm, gpu_layers=99) as model:
        for tokens in (8192, 2048):  # the cache alone, the cache with the buffers
            with pytest.raises(UnsupportedError, match=rf"no memory for a context of {tokens} tokens: .*RPC") as caught:
                Context(model, tokens)
            assert "\n" not in str(caught.value)
        with Context(model, 64) as context:
            context.decode([1], 0)


def test_two_devices_divide_the_layers_as_planned(smollm: Path) -> None:
    expected = answer_of(smollm, ON_CPU)
    with rpc_device(GPU_MARGIN_BYTES + 95 * MIB) as first, rpc_device(GPU_MARGIN_BYTES + 95 * MIB) as second:
        before = first.allocated_bytes(), second.allocated_bytes()
        with Engine(smollm, OPTIONS) as engine:
            assert sum(engine.fit.tensor_split) == engine.fit.gpu_layers == 31
            assert min(engine.fit.tensor_split) > 0
            check_equal_but_for_ties(expected, ask(engine))
            for server, empty, planned in zip((first, second), before, engine.fit.devices[1:], strict=True):
                assert MIB < server.allocated_bytes() - empty < planned.needed_bytes


@pytest.mark.long
def test_a_full_device_beside_a_free_one_is_not_touched(tiny: Path) -> None:
    expected = answer_of(tiny, ON_CPU)
    with rpc_device(30 * MIB) as full, rpc_device(2048 * MIB), Engine(tiny, OPTIONS) as engine:
        empty = full.allocated_bytes()
        assert engine.fit.tensor_split == (0, 3)
        check_equal_but_for_ties(expected, ask(engine))
        assert full.allocated_bytes() == empty


def test_an_adapter_lies_beside_the_weights_and_counts_as_on_the_processor(
    device: Server, smollm: Path, tmp_path: Path
) -> None:
    loras = (Lora(write_adapter(tmp_path / "adapter.gguf", 1), 3.0),)
    plain, expected = answer_of(smollm, ON_CPU), answer_of(smollm, replace(ON_CPU, loras=loras))
    assert plain.text != expected.text
    for layers in (12, "auto"):
        found = answer_of(smollm, replace(OPTIONS, loras=loras, gpu_layers=layers))
        check_equal_but_for_ties(expected, found)


def test_two_models_and_a_draft_share_the_device(device: Server, smollm: Path, tiny: Path) -> None:
    expected = answer_of(smollm, ON_CPU), answer_of(tiny, ON_CPU)
    with Engine(smollm, OPTIONS) as one, Engine(tiny, OPTIONS) as other:
        assert one.fit.gpu_layers == 31
        assert other.fit.gpu_layers == 3
        assert other.fit.devices[1].free_bytes < one.fit.devices[1].free_bytes - 90 * MIB
        for _ in range(2):
            for engine, wanted in zip((one, other), expected, strict=True):
                check_equal_but_for_ties(wanted, ask(engine))
                engine.clear_cache()
    empty = device.allocated_bytes()
    with Engine(tiny, replace(OPTIONS, draft=tiny)) as engine:
        check_equal_but_for_ties(expected[1], ask(engine))
        assert engine._loaded.draft is not None
        assert engine._loaded.draft.model.gpu_layers == 3, "where the model is, if there is room"
    assert device.allocated_bytes() - empty < 8 * MIB, "closed engines leave nothing behind"


def test_a_shared_prefix_and_a_restored_state_go_on_alike(device: Server, tiny: Path, tmp_path: Path) -> None:
    with Engine(tiny, OPTIONS) as engine:
        first = ask(engine)
        again = ask(engine)
        assert again.cached_tokens > 0
        check_equal_but_for_ties(first, again)
    lib = library()
    with Model(tiny, gpu_layers=99) as model:
        tokens = model.tokenize(TEXT)
        saved = tmp_path / "state.bin"
        with Context(model, 128, threads=1) as context:
            context.decode(tokens, 0)
            assert lib.llama_state_seq_save_file(context.handle, str(saved).encode(), 0, None, 0) > 0
            context.decode([tokens[0]], len(tokens))
            expected = context.logits().copy()
        with Context(model, 128, threads=1) as context:
            count, read = ctypes.c_size_t(), (lib.llama_token * len(tokens))()
            assert lib.llama_state_seq_load_file(context.handle, str(saved).encode(), 0, read, len(read), count) > 0
            context.decode([tokens[0]], len(tokens))
            assert np.array_equal(context.logits(), expected)


def test_scores_and_logits_are_the_processors(device: Server, smollm: Path) -> None:
    found: list[tuple[float, Any]] = []
    for options in (ON_CPU, OPTIONS):
        with Engine(smollm, options) as engine:
            rows: list[Any] = []
            tokens = engine.text_tokens(TEXT)
            engine.logits(tokens, lambda _position, some, rows=rows: rows.append(some.copy()))  # type: ignore[misc]
            found.append((engine.score(tokens[:4], [tokens[4:]])[0].nats, np.concatenate(rows)))
    (nats, logits), (nats_there, logits_there) = found
    assert nats_there == pytest.approx(nats, rel=0.01)
    assert np.abs(logits - logits_there).max() < CLOSE * np.abs(logits).max()


def test_an_encoder_decoder_answers_and_searches_beams(device: Server, tmp_path: Path) -> None:
    path = _written(tmp_path / "t5.gguf", tiny_t5)
    for sampling in (Sampling(max_tokens=8), Sampling(max_tokens=8, beams=3)):
        texts = []
        for options in (ON_CPU, OPTIONS):
            with Engine(path, replace(options, context_tokens=64, raw=True)) as engine:
                assert bool(engine.fit.gpu_layers) == (options is OPTIONS)
                # keys and values of 64 floats in each of two layers; cells for four contexts
                assert (engine.fit.kv_type, engine.fit.cache_bytes) == (
                    "f32",
                    2 * 2 * 64 * 4 * engine.context.context_tokens,
                )
                texts.append(engine.answer(Request(engine.text_tokens("the lung and the heart"), sampling)).text)
        assert texts[0] == texts[1]


@pytest.mark.parametrize("make", [tiny_bert, tiny_bpe, tiny_t5])
def test_embeddings_are_the_processors(device: Server, tmp_path: Path, make: Callable[..., Any]) -> None:
    path = _written(tmp_path / "model.gguf", make)
    empty, vectors = device.allocated_bytes(), []
    for layers in (0, 99):
        with Embedder(path, gpu_layers=layers, threads=1) as embedder:
            vectors.append(embedder.embed(["the heart", "a lung and a heart"]))
            assert (device.allocated_bytes() - empty > 64 << 10) == bool(layers)
    assert np.abs(vectors[0] - vectors[1]).max() < CLOSE


def test_threads_measured_on_the_device_are_not_taken_for_the_processors(
    device: Server, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    for options in (OPTIONS, ON_CPU):
        with Engine(tiny, replace(options, threads=None)) as engine:
            ask(engine)
            assert (engine.context.thread_tuner is None) == (options is OPTIONS)
    store = (tmp_path / "cache" / "threads.json").read_text(encoding="utf-8")
    assert store.count(backend_id()) == 2
    assert store.count("3 GPU layers") == 1


def test_the_device_is_listed_with_its_backend_and_its_memory(device: Server) -> None:
    own = next(each for each in read_devices() if each.kind == "gpu")
    assert (own.description, own.backend, own.total_bytes) == (device.endpoint, "RPC", 2048 * MIB)
    assert 0 < own.free_bytes <= own.total_bytes
    assert len(device_list([own.name])) == 2
    with pytest.raises(UnsupportedError, match=f"no device CUDA7, only CPU, {own.name}"):
        device_list(["CUDA7"])
