"""The fit, on pretended machines, and its estimates against what llama.cpp itself takes for models of all sizes."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gladstone.errors import ConfigError, UnsupportedError
from gladstone.gguf.header import GgufHeader, read_model
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.devices import Device
from gladstone.llamacpp.model import Model
from gladstone.machine.host import available_memory_bytes, mapped_file_bytes
from runtime.machine.fit import Fit, FitConstraints, Gpu, Machine, _shares_memory, plan_fit, read_machine
from runtime.machine.memory_model import ContextSettings, buffer_bytes, cache_bytes, read_memory_model, row_bytes
from tests.runtime.gguf_shapes import SHAPES, measure, write_shape

GB = 10**9
NAMES = [*SHAPES, "gpt2", "flan-t5-base", "mamba-130m"]
Headers = Callable[[str], Sequence[GgufHeader]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shape as a file without its weights."""
    folder = tmp_path_factory.mktemp("shapes")
    for name in NAMES:
        write_shape(folder, name)
    return folder


@pytest.fixture(scope="module")
def headers(folder: Path) -> Headers:
    known = {name: read_model(folder / f"{name}.gguf") for name in NAMES}
    return lambda name: known[name]


def uses(name: str, sizes: tuple[int, ...] = (2048, 8192)) -> list[ContextSettings]:
    """Contexts of all kinds that llama.cpp can make of a model."""
    encoder = name == "flan-t5-base"
    sizes = (256, 512) if encoder else (512, 1024) if name == "gpt2" else sizes
    found = []
    for tokens, batch, sequences, unified, flash in itertools.product(
        sizes, (64, 512), (1, 4), (True, False), (True, False)
    ):
        if encoder and not unified:
            continue
        piece = tokens if encoder else batch
        for outputs in (sequences, piece):
            found.append(ContextSettings(tokens, piece, sequences, outputs, "f16", flash, unified))
            if flash and not encoder:
                found.append(
                    ContextSettings(tokens, piece, sequences, outputs, "q8_0", flash, unified, full_window=False)
                )
    return found


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-3-4b", "qwen3-30b-a3b", "flan-t5-base", "mamba-130m"])
def test_the_cache_is_exact_and_the_buffers_are_bounded(name: str, folder: Path, headers: Headers) -> None:
    check_estimates(name, folder, headers, uses(name)[::5])


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_estimates_hold_for_every_use_of_every_model(name: str, folder: Path, headers: Headers) -> None:
    check_estimates(name, folder, headers, uses(name))


def check_estimates(name: str, folder: Path, headers: Headers, asked: list[ContextSettings]) -> None:
    model = read_memory_model(headers(name))
    path = folder / f"{name}.gguf"
    for context, taken in zip(asked, measure([(path, context) for context in asked]), strict=True):
        cached = sum(cache_bytes(layer, context) for layer in model.layers)
        # the log rounds to two decimals of a MiB
        assert abs(cached - taken.cache) < 0.011 * (1 << 20), context
        assert taken.buffers <= buffer_bytes(model, context), context
        assert buffer_bytes(model, context) <= 1.5 * taken.buffers + 16 * (1 << 20), context


def test_the_weights_of_the_embedded_model_are_what_llama_cpp_loads(embedded_gguf: Path) -> None:
    context = ContextSettings(1024, 128, 1, 128)
    model = read_memory_model(read_model(embedded_gguf))
    taken = measure([(embedded_gguf, context)], allocate=True)[0]
    assert model.weight_bytes == pytest.approx(taken.weights, rel=0.02)
    assert sum(cache_bytes(layer, context) for layer in model.layers) == pytest.approx(
        taken.cache, abs=0.011 * (1 << 20)
    )
    assert taken.buffers <= buffer_bytes(model, context) <= 1.5 * taken.buffers + (16 << 20)


def test_rows_of_quantised_types_are_counted_in_blocks() -> None:
    assert (row_bytes(64, "f16"), row_bytes(64, "q8_0"), row_bytes(65, "q8_0"), row_bytes(0, "f16")) == (
        128,
        68,
        102,
        0,
    )


def rtx(free_gb: float, total_gb: float = 8) -> Machine:
    return Machine(32 * GB, (Gpu("RTX 3060", int(free_gb * GB), int(total_gb * GB)),))


LINES = [
    ("llama-3-8b", rtx(4), FitConstraints(context_tokens=8192),
     "gpu layers 17 of 33 (3.9 of 4.0 GB free on RTX 3060), weights mapped, context 8,192 (f16 cache 1.07 GB), batch 512, flash attention on"),
    ("llama-3-8b", rtx(7.4), FitConstraints(context_tokens=8192),
     "gpu layers 33 of 33 (6.3 of 7.4 GB free on RTX 3060), weights mapped, context 8,192 (f16 cache 1.07 GB), batch 512, flash attention on"),
    ("llama-3-8b", rtx(6.2), FitConstraints(context_tokens=8192),
     "gpu layers 33 of 33 (6.1 of 6.2 GB free on RTX 3060), weights mapped, context 8,192 (f16 cache 1.07 GB), batch 256, flash attention on"),
    ("llama-3-8b", rtx(0.5), FitConstraints(),
     "gpu layers 0 of 33 (5.7 of 32.0 GB free in memory), weights mapped, context 4,096 (f16 cache 0.54 GB) of at most 8,192 (--context), batch 512, flash attention on"),
    ("llama-3-8b", Machine(6 * GB), FitConstraints(),
     "no GPU backend (5.7 of 6.0 GB free), weights mapped, context 4,096 (f16 cache 0.54 GB) of at most 8,192 (--context), batch 512, flash attention on"),
    ("llama-3-8b", Machine(int(5.2 * GB)), FitConstraints(),
     "no GPU backend (5.1 of 5.2 GB free), weights mapped, context 2,048 (f16 cache 0.27 GB) instead of 4,096, to fit the memory, "
     "batch 128, flash attention on"),
    ("llama-3-8b", Machine(int(5.2 * GB)), FitConstraints(kv_types=("f16", "q8_0")),
     "no GPU backend (5.2 of 5.2 GB free), weights mapped, context 4,096 (q8_0 cache 0.29 GB) of at most 8,192 (--context), batch 128, flash attention on"),
    ("flan-t5-base", Machine(4 * GB), FitConstraints(),
     "no GPU backend (0.5 of 4.0 GB free), weights mapped, context 512 (f16 cache 0.02 GB), batch 512, flash attention off"),
    ("flan-t5-base", Machine(4 * GB, huge_pages=True), FitConstraints(),
     "no GPU backend (0.5 of 4.0 GB free), weights copied into huge pages, context 512 (f16 cache 0.02 GB), batch 512, "
     "flash attention off"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "machine", "constraints", "line"), LINES)
def test_the_fit_is_reported_in_one_line(
    headers: Headers, name: str, machine: Machine, constraints: FitConstraints, line: str
) -> None:
    assert plan_fit(headers(name), machine, constraints).reason == line


def needed(fit: Fit) -> list[tuple[int, int]]:
    return [(share.needed_bytes, share.free_bytes) for share in fit.devices]


WISHES = st.builds(
    FitConstraints,
    context_tokens=st.sampled_from([None, 256, 512]),
    batch_tokens=st.sampled_from([None, 64, 512]),
    sequences=st.sampled_from([1, 3]),
    outputs=st.sampled_from([None, 4]),
    unified=st.booleans(),
    full_window=st.booleans(),
    reserved_bytes=st.sampled_from([0, GB]),
)
MACHINES = st.builds(
    lambda memory, gpus: Machine(memory, tuple(gpus)),
    st.integers(0, 40 * GB),
    st.lists(st.builds(lambda free: Gpu("gpu", free, 80 * GB), st.integers(0, 30 * GB)), max_size=3),
)


@settings(max_examples=150)
@given(st.sampled_from(NAMES), MACHINES, WISHES)
def test_no_more_is_promised_than_is_free(
    headers: Headers, name: str, machine: Machine, constraints: FitConstraints
) -> None:
    try:
        fit = plan_fit(headers(name), machine, constraints)
    except UnsupportedError:
        return
    model = read_memory_model(headers(name))
    assert all(have >= need for need, have in needed(fit))
    # everything lies somewhere: no layer, no cache and no buffer is forgotten
    assert sum(share.layers for share in fit.devices) == len(model.layers) + 1
    assert sum(fit.tensor_split) == fit.gpu_layers <= fit.all_layers
    whole = model.weight_bytes + fit.cache_bytes + buffer_bytes(model, fit.settings)
    assert sum(need for need, _ in needed(fit)) >= whole
    free = machine.memory_bytes + sum(gpu.free_bytes for gpu in machine.gpus)
    assert whole + constraints.reserved_bytes <= free
    assert fit.context_tokens == (constraints.context_tokens or fit.context_tokens)
    assert (
        fit.batch_tokens == (constraints.batch_tokens or fit.batch_tokens)
        or name == "flan-t5-base"
        or fit.context_tokens < 512
    )


@settings(max_examples=150)
@given(st.sampled_from(NAMES), MACHINES, WISHES, st.integers(0, 20 * GB), st.integers(0, 3))
def test_more_memory_never_gives_less(
    headers: Headers, name: str, machine: Machine, constraints: FitConstraints, more: int, where: int
) -> None:
    gpus = list(machine.gpus)
    if where < len(gpus):
        gpus[where] = replace(gpus[where], free_bytes=gpus[where].free_bytes + more)
        larger = Machine(machine.memory_bytes, tuple(gpus))
    else:
        larger = Machine(machine.memory_bytes + more, machine.gpus)
    try:
        small = plan_fit(headers(name), machine, constraints)
    except UnsupportedError:
        return
    large = plan_fit(headers(name), larger, constraints)
    assert (large.context_tokens, large.gpu_layers) >= (small.context_tokens, small.gpu_layers)


def test_layers_come_before_context_and_only_an_unset_context_is_reduced(headers: Headers) -> None:
    small = Machine(6 * GB, (Gpu("small", 2 * GB, 2 * GB),))
    fit = plan_fit(headers("llama-3-8b"), small, FitConstraints())
    assert fit.context_tokens == 4096
    assert 0 < fit.gpu_layers < fit.all_layers
    tight = Machine(int(5.2 * GB))
    assert plan_fit(headers("llama-3-8b"), tight, FitConstraints()).context_tokens == 2048
    with pytest.raises(UnsupportedError) as caught:
        plan_fit(headers("llama-3-8b"), tight, FitConstraints(context_tokens=4096, batch_tokens=512))
    assert str(caught.value) == (
        "not enough memory for a context of 4,096 tokens: weights 4.65 GB, f16 cache 0.54 GB, buffers at most 0.34 GB; "
        "free: 5.20 GB. What fits: a context of 2,048 tokens."
    )


def test_requested_layers_that_do_not_fit_are_refused_with_what_fits(headers: Headers) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan_fit(headers("llama-3-8b"), rtx(4), FitConstraints(gpu_layers=30, context_tokens=8192))
    assert str(caught.value) == (
        "not enough memory for 30 GPU layers and a context of 8,192 tokens: weights 4.65 GB, f16 cache 1.07 GB, buffers at "
        "most 0.09 GB; free: 32.00 GB and 4.00 GB on RTX 3060. "
        "What fits: 17 of 33 GPU layers and a context of 8,192 tokens."
    )
    asked = plan_fit(headers("llama-3-8b"), rtx(4), FitConstraints(gpu_layers=5, context_tokens=8192))
    assert (asked.gpu_layers, asked.tensor_split) == (5, (5,))
    assert plan_fit(headers("llama-3-8b"), rtx(12), FitConstraints(gpu_layers=99)).gpu_layers == 33


def test_a_model_that_fits_nowhere_is_refused(headers: Headers) -> None:
    with pytest.raises(UnsupportedError, match=r"No context of this model fits: use a smaller quantisation"):
        plan_fit(headers("mixtral"), Machine(8 * GB), FitConstraints())


@pytest.mark.parametrize(
    ("name", "machine", "constraints", "error", "message"),
    [
        ("llama-3-8b", Machine(32 * GB), FitConstraints(gpu_layers=1), UnsupportedError, "1 GPU layers: llama.cpp sees no GPU"),
        ("llama-3-8b", rtx(8), FitConstraints(gpu_layers=-1), ConfigError, "-1 GPU layers: expected 0 or more, or auto."),
        ("llama-3-8b", rtx(8), FitConstraints(context_tokens=8193), ConfigError, "a context of 8,193 tokens: expected 1 to 8,192."),
        ("llama-3-8b", rtx(8), FitConstraints(kv_types=("q7",)), ConfigError, "cache type 'q7': expected one of f32, f16, q8_0"),
        ("llama-3-8b", rtx(8), FitConstraints(kv_types=()), ConfigError, "cache type 'none'"),
        ("llama-3-8b", rtx(8), FitConstraints(sequences=0), ConfigError, "sequences and batch must be 1 or more"),
        ("llama-3-8b", rtx(8), FitConstraints(kv_types=("q8_0",), flash_attention=False), UnsupportedError,
         "a cache of type q8_0 needs flash attention, and flash attention is off. Take f16."),
        ("flan-t5-base", rtx(8), FitConstraints(kv_types=("q8_0",)), UnsupportedError, "models with an encoder have none"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(
    headers: Headers, name: str, machine: Machine, constraints: FitConstraints, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        plan_fit(headers(name), machine, constraints)
    assert message in str(caught.value)


def test_layers_go_to_one_gpu_after_the_other_and_a_full_one_is_passed_over(headers: Headers) -> None:
    gpus = (Gpu("first", 4 * GB, 8 * GB), Gpu("full", GB // 10, 8 * GB), Gpu("last", 4 * GB, 8 * GB))
    fit = plan_fit(headers("llama-3-8b"), Machine(32 * GB, gpus), FitConstraints())
    assert fit.gpu_layers == 33
    assert fit.tensor_split[1] == 0
    assert [share.needed_bytes > 0 for share in fit.devices] == [True, True, False, True]
    assert "on full" not in fit.reason


def test_memory_that_a_gpu_shares_with_the_processor_is_counted_once(headers: Headers) -> None:
    chip = Machine(8 * GB, (Gpu("Apple M2", 8 * GB, 8 * GB, shares_memory=True),))
    fit = plan_fit(headers("llama-3-8b"), chip, FitConstraints())
    assert sum(share.needed_bytes for share in fit.devices) <= 8 * GB
    assert fit.devices[0].free_bytes == 8 * GB - fit.devices[1].needed_bytes
    with pytest.raises(UnsupportedError):
        plan_fit(headers("llama-3-8b"), replace(chip, memory_bytes=4 * GB), FitConstraints())


@pytest.mark.parametrize(
    ("machine", "mapped"),
    [
        (Machine(12 * GB, huge_pages=True), False),
        (Machine(11 * GB, huge_pages=True), True),  # of which the model needs 5.7
        (Machine(12 * GB, huge_pages=False), True),
        (replace(rtx(4), huge_pages=True), True),
        (replace(rtx(0.5), huge_pages=True), False),
    ],
)
def test_weights_are_copied_where_they_get_huge_pages_and_half_of_the_memory_is_left(
    headers: Headers, machine: Machine, mapped: bool
) -> None:
    assert plan_fit(headers("llama-3-8b"), machine, FitConstraints()).mapped == mapped
    for asked in (True, False):
        assert plan_fit(headers("llama-3-8b"), machine, FitConstraints(mapped=asked)).mapped == asked


def test_what_is_reserved_for_a_second_model_stays_free(headers: Headers) -> None:
    alone = plan_fit(headers("llama-3-8b"), rtx(8), FitConstraints())
    beside = plan_fit(headers("llama-3-8b"), rtx(8), FitConstraints(reserved_bytes=4 * GB))
    assert beside.gpu_layers < alone.gpu_layers
    assert beside.devices[1].needed_bytes <= 4 * GB


def test_the_machine_is_read_and_a_loaded_model_counts_as_taken(embedded_gguf: Path) -> None:
    before = mapped_file_bytes()
    fit = plan_fit(read_model(embedded_gguf), read_machine(), FitConstraints())
    assert fit.context_tokens == 4096
    with Model(embedded_gguf) as model, Context(model, 512, threads=1) as context:
        context.decode(model.tokenize("The heart"), 0)
        taken = mapped_file_bytes() - before  # the system says that these pages are free
        free = available_memory_bytes() - read_machine().memory_bytes
    assert taken > 60_000_000
    assert free == pytest.approx(taken + before, abs=500_000_000)  # others take and free memory meanwhile


@pytest.mark.parametrize(
    ("name", "kind", "shares"), [("CUDA0", "gpu", False), ("MTL0", "gpu", True), ("Vulkan0", "igpu", True)]
)  # fmt: skip
def test_graphics_of_the_processor_share_its_memory(name: str, kind: str, shares: bool) -> None:
    assert _shares_memory(Device(name, "", kind, 1, 1)) is shares
