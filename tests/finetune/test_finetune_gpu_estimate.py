"""What the estimate says of a GPU: weights, head, optimizer, host memory and time."""

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finetune.cli import main
from finetune.config.load import load_recipe
from finetune.config.schema import Recipe
from finetune.estimate.expected_times import expected_times
from finetune.estimate.machine import Machine, other_machine
from finetune.sizing.devices import DEVICES, known_device
from finetune.sizing.fit_to_memory import Scenario, assess
from finetune.sizing.fused_loss import CHUNK_BYTES, Head, chunk_rows, fused_loss_bytes
from finetune.sizing.memory import (
    MicroBatchShape,
    gpu_setting,
    head_bytes,
    moment_bytes,
    weight_bytes,
)
from finetune.sizing.model_shape import FORCED_FLOAT32, shape_of_config, shape_of_facts
from finetune.sizing.step_plan import Row, assumed_rows
from tests.tiny_models import write_rows_file

TURING, AMPERE = (7, 5), (8, 0)
LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256}  # fmt: skip
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32_000}
TINYLLAMA = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
             "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32_000}  # fmt: skip
DISTILGPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "vocab_size": 50_257}
FLAN_T5 = {"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
           "vocab_size": 32_128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip
GEMMA_1B = {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
            "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144}  # fmt: skip

# by hand, in 10⁹ bytes: weights in 4 bit at 0.516, the rest (embedding, head) at 2; T5 in float32
WEIGHTS: list[tuple[str, dict[str, Any], bool, float]] = [
    ("DeepSeek-R1-Distill-Llama-8B", LLAMA_8B, True, 0.516 * 6.979 + 2 * 1.0507),
    ("the same in 16 bit", LLAMA_8B, False, 2 * 8.030),
    ("Mistral-7B", MISTRAL_7B, True, 0.516 * 6.979 + 2 * 0.2621),
    ("TinyLlama", TINYLLAMA, True, 0.516 * 0.9689 + 2 * 0.1311),
    ("DistilGPT-2", DISTILGPT2, False, 2 * 0.0811),
    ("Flan-T5-base", FLAN_T5, False, 4 * 0.2475),
    ("Gemma-3-1B", GEMMA_1B, True, 0.516 * 0.6978 + 2 * 0.3020),
]


@pytest.mark.parametrize("capability", [TURING, AMPERE])
@pytest.mark.parametrize(("config", "four_bit", "gigabytes"), [w[1:] for w in WEIGHTS], ids=[w[0] for w in WEIGHTS])
def test_weights_are_in_16_bit_on_every_gpu_and_t5s_in_32(
    config: dict[str, Any], four_bit: bool, gigabytes: float, capability: tuple[int, int]
) -> None:
    shape = shape_of_config(config)
    setting = gpu_setting(shape, capability)
    found = weight_bytes(shape, four_bit=four_bit, dtype_bytes=setting.held_bytes)
    assert found / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_what_overflows_in_float16_is_computed_in_float32_before_ampere() -> None:
    gemma, llama, t5 = map(shape_of_config, (GEMMA_1B, LLAMA_8B, FLAN_T5))
    sizes = {
        (shape.kind + str(shape.overflows_in_float16), capability): (setting.dtype_bytes, setting.held_bytes)
        for shape in (gemma, llama, t5)
        for capability in (TURING, AMPERE)
        for setting in [gpu_setting(shape, capability)]
    }
    assert sizes == {
        ("llamaTrue", TURING): (4, 2), ("llamaTrue", AMPERE): (2, 2), ("llamaFalse", TURING): (2, 2),
        ("llamaFalse", AMPERE): (2, 2), ("t5False", TURING): (4, 4), ("t5False", AMPERE): (4, 4),
    }  # fmt: skip


def test_the_kinds_that_overflow_are_those_that_unsloth_lists() -> None:
    spec = importlib.util.find_spec("unsloth_zoo")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("model_lists.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in tree.body  # type: ignore[attr-defined]
             if isinstance(node, ast.Assign)}  # fmt: skip
    listed = ast.literal_eval(lists["FORCE_FLOAT32"])
    plain = {name.strip(",").replace("_", "") for name in listed}
    assert {name.replace("_", "") for name in FORCED_FLOAT32} == plain


@pytest.mark.parametrize(
    ("width", "vocabulary"),
    [(1152, 262_144), (4096, 128_256), (4096, 32_000), (2048, 151_936), (768, 50_257), (64, 300)],
)
def test_a_chunk_has_as_many_rows_as_unsloth_gives_it(width: int, vocabulary: int) -> None:
    import torch

    from finetune.model.decoder import import_unsloth

    import_unsloth()
    from unsloth_zoo.fused_losses import fused_linear

    budget = fused_linear._budget_bytes(torch.device("cpu"))
    for scored in (1, 40, 511, 513, 4096, 20_000, 150_000):
        theirs = fused_linear.fused_linear_rows(scored, width, vocabulary, 4, torch.device("cpu"))
        assert chunk_rows(Head(width, vocabulary, TURING, 16e9), scored, budget) == theirs


def test_the_head_takes_a_chunk_of_scored_rows_and_not_all_rows() -> None:
    gemma, batch = shape_of_config(GEMMA_1B), MicroBatchShape(4096, 0, 2, 3000)
    setting = gpu_setting(gemma, TURING, 15e9)
    assert head_bytes(gemma, setting, batch) / 1e9 == pytest.approx(512 * 262_144 * 4 / 1e9, rel=0.01)
    few = MicroBatchShape(4096, 0, 2, 100)
    assert head_bytes(gemma, setting, few) / 1e9 == pytest.approx(100 * 262_144 * 4 / 1e9, rel=0.01)
    newer = gpu_setting(gemma, AMPERE, 24e9)  # a tile of the vocabulary at a time
    assert head_bytes(gemma, newer, batch) / 1e9 == pytest.approx(3000 * 16_384 * 4 / 1e9, rel=0.1)


def test_a_chunk_takes_at_most_half_of_what_was_free() -> None:
    head = Head(4096, 262_144, TURING, 16e9)
    assert fused_loss_bytes(head, 10**6) <= CHUNK_BYTES * 1.02
    assert fused_loss_bytes(head, 10**6, 0.4e9) <= 0.2e9 * 1.02
    assert fused_loss_bytes(head, 10**6, -1) > 0


def test_t5_has_all_logits_at_the_same_time_on_a_gpu_too() -> None:
    shape, batch = shape_of_config(FLAN_T5), MicroBatchShape(1024, 512, 4, 300)
    assert head_bytes(shape, gpu_setting(shape, AMPERE), batch) == 512 * 32_128 * 12


def on(name: str, recipe: Recipe, config: dict[str, Any]) -> tuple[Scenario, Machine]:
    shape = shape_of_config(config)
    machine = other_machine(DEVICES[name], shape)
    return Scenario(shape, recipe, machine.setting, assumed_rows(recipe, 64), machine.limit_bytes), machine


def test_an_8b_fits_a_t4_in_4_bit_and_not_in_16() -> None:
    recipe = load_recipe("deepseek-r1-cot", [])
    scenario, _ = on("t4", recipe, LLAMA_8B)
    _, memory, recomputes = assess(scenario)
    assert recomputes
    assert memory.peak < 10.4e9 < scenario.room_bytes
    wide = load_recipe("deepseek-r1-cot", ["base.load_in_4bit=false"])
    assert assess(on("t4", wide, LLAMA_8B)[0])[1].peak > 16e9


def test_recomputed_inputs_lie_in_host_memory_and_are_counted_there() -> None:
    recipe = load_recipe("deepseek-r1-cot", ["training.gradient_checkpointing=on"])
    scenario, machine = on("t4", recipe, LLAMA_8B)
    plan, memory, _ = assess(scenario)
    inputs = 32 * plan.largest.input_tokens * 4096 * 2
    assert memory.offloaded == inputs
    assert any("host memory" in note for note in machine.notes(memory))
    off = load_recipe("deepseek-r1-cot", ["training.gradient_checkpointing=off"])
    without = assess(replace(scenario, recipe=off))[1]
    assert without.offloaded == 0
    assert without.peak > memory.peak + inputs
    small = replace(scenario, rows={name: [Row(16, 0, 8)] * 8 for name in ("train", "validation", "test")})
    assert assess(small)[1].offloaded == 0  # 2 MiB and less stay on the GPU
    t5, machine = on("t4", load_recipe("flan-t5-medical", ["training.gradient_checkpointing=on"]), FLAN_T5)
    assert assess(t5)[1].offloaded == 0


def test_the_time_on_a_gpu_is_rough_and_from_its_data_sheet_or_unknown() -> None:
    scenario, t4 = on("t4", load_recipe("deepseek-r1-cot", []), LLAMA_8B)
    plan = assess(scenario)[0]
    rough = expected_times(scenario, t4, plan, None)
    assert rough.times is not None
    assert rough.range_s is not None
    least, most = rough.range_s
    assert least < rough.times.total_s < most
    assert most / least > 3
    assert "65.0 TFLOP/s of NVIDIA T4's data sheet" in rough.notes[0]
    here = Machine("this machine's Tesla X", scenario.setting, 16 * 10**9)
    unknown = expected_times(scenario, here, plan, None)
    assert (unknown.times, unknown.range_s) == (None, None)
    assert "not known" in unknown.notes[0]


def test_t5_computes_at_the_rate_of_32_bit() -> None:
    scenario, t4 = on("t4", load_recipe("flan-t5-medical", []), FLAN_T5)
    assert "8.1 TFLOP/s" in expected_times(scenario, t4, assess(scenario)[0], None).notes[0]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("Tesla T4", "t4"), ("Tesla P100-PCIE-16GB", "p100"), ("Tesla V100-SXM2-16GB", "v100"), ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"), ("NVIDIA A10G", None), ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", None), ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 3090", "rtx3090"), ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD Radeon RX 7900 XTX", None), ("", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_the_name_that_its_driver_gives_it(name: str, device: str | None) -> None:
    assert known_device(name) is (DEVICES[device] if device else None)


@pytest.mark.parametrize(("device", "build"), [("p100", "cu126"), ("v100", "cu126"), ("t4", ""), ("a100", "")])
def test_a_gpu_without_kernels_in_the_usual_torch_comes_with_the_line_that_installs_them(
    device: str, build: str, tmp_path: Path
) -> None:
    rows = write_rows_file(tmp_path / "rows.jsonl")
    told = CliRunner().invoke(main, ["estimate", "llama-3.2-1b", "--data", str(rows), "--device", device])
    assert told.exit_code == 0, told.output
    assert ("no kernels" in told.stdout) is bool(build)
    assert build in told.stdout
    assert "rough: computed, not measured" in told.stdout
    data = json.loads(
        CliRunner().invoke(main, ["estimate", "llama-3.2-1b", "--data", str(rows), "--device", device, "--json"]).stdout
    )
    assert data["total_range_s"][0] < data["total_s"] < data["total_range_s"][1]


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "sgd", "rmsprop", "adagrad", "adafactor", "lion_8bit",
              "lion_32bit", "ademamix", "ademamix_8bit", "rmsprop_bnb_8bit")  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_as_many_bytes_as_are_counted(name: str) -> None:
    import torch

    from finetune.model.optimizer import make_optimizer
    from gladstone.errors import UnsupportedError

    model = torch.nn.Linear(2048, 16, bias=False)  # the size of a factor; bitsandbytes keeps small ones in 32 bit
    model.device = model.weight.device
    recipe = load_recipe("smollm2-135m-medical", [f"training.optimizer={name}"])
    try:
        optimizer = make_optimizer(model, recipe.training)
        model.weight.grad = torch.full_like(model.weight, 0.01)
        optimizer.step()
    except (UnsupportedError, RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"{name} does not work here: {error}")
    kept: dict[int, int] = {}
    for value in optimizer.state[model.weight].values():
        if torch.is_tensor(value) and value.dim() > 0 and value.numel() != 256:  # not the table of 8-bit numbers
            kept[value.data_ptr()] = value.nbytes
    assert sum(kept.values()) / model.weight.numel() == pytest.approx(moment_bytes(recipe), abs=0.1)


# peak in 10⁹ bytes and whether activations are recomputed, for rows of the maximum length
SAID = {
    "deepseek-r1-cot": {"t4": (8.47, True), "l4": (8.47, True), "a100": (23.49, False)},
    "demo-triage": {"t4": (2.40, False), "l4": (2.34, False), "a100": (2.40, False)},
    "distilgpt2-pubmedqa": {"t4": (1.62, True), "l4": (1.62, True), "a100": (1.62, True)},
    "flan-t5-medical": {"t4": (4.16, False), "l4": (4.16, False), "a100": (4.16, False)},
    "gemma-3-1b": {"t4": (3.46, True), "l4": (13.08, False), "a100": (13.08, False)},
    "gemma-3-270m": {"t4": (7.69, False), "l4": (5.02, False), "a100": (5.02, False)},
    "llama-3.2-1b": {"t4": (6.86, False), "l4": (6.89, False), "a100": (6.89, False)},
    "llama-3.2-3b": {"t4": (13.31, False), "l4": (13.36, False), "a100": (13.36, False)},
    "medbot-mistral-7b": {"t4": (6.17, False), "l4": (6.17, False), "a100": (6.17, False)},
    "phi-4-mini": {"t4": (5.41, True), "l4": (5.41, True), "a100": (22.39, False)},
    "qwen3-0.6b": {"t4": (6.19, False), "l4": (6.17, False), "a100": (6.17, False)},
    "qwen3-1.7b": {"t4": (10.25, False), "l4": (10.23, False), "a100": (10.23, False)},
    "qwen3-4b": {"t4": (5.16, True), "l4": (17.89, False), "a100": (17.89, False)},
    "smollm2-135m": {"t4": (5.18, False), "l4": (5.25, False), "a100": (5.25, False)},
    "smollm2-135m-medical": {"t4": (3.33, False), "l4": (3.40, False), "a100": (3.40, False)},
    "smollm3-3b": {"t4": (4.34, True), "l4": (15.07, False), "a100": (15.07, False)},
    "tinyllama-qlora": {"t4": (7.13, False), "l4": (7.13, False), "a100": (7.13, False)},
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_the_estimates_of_the_publications_and_of_our_recipes(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.hub is not None
    shape = shape_of_facts(recipe.hub)
    said: dict[str, tuple[Any, bool]] = {}
    for device in SAID[name]:
        machine = other_machine(DEVICES[device], shape)
        scenario = Scenario(shape, recipe, machine.setting, assumed_rows(recipe, 64), machine.limit_bytes)
        _, memory, recomputes = assess(scenario)
        assert memory.peak < scenario.room_bytes, device
        said[device] = (pytest.approx(memory.peak / 1e9, rel=0.02), recomputes)
    assert said == SAID[name]
