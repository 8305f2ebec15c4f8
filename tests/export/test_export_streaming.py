"""The model in torch: where it computes, and layer by layer the same as whole."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from export.proof.reference import Reference
from export.proof.trained import Trained
from export.torch_model.placement import Memory, Placement, place, place_model
from export.torch_model.size import ModelSize, model_size
from gladstone.errors import UnsupportedError
from tests.export.tiny_runs import load_float32
from tests.families import FAMILIES, write_family

PROMPTS, ANSWERS = [[5, 6, 7, 8, 9], [5, 6, 10], [5, 6, 11, 12]], [[20, 21, 22], [23], [24, 25]]
WHOLE, STREAMED = Placement("cpu", False, 0, 0), Placement("cpu", True, 0, 0)
WIDTH = {"hidden_size": 80}
TARGETS = {"flan-t5": ["q", "wo"], "distilgpt2": ["c_attn", "c_proj"]}


def stored_as(folder: Path, kind: str) -> None:
    """Rewrite a model's weights in another float dtype."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.to(getattr(torch, kind)) for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": kind}))


def adapter_of(base: Path, folder: Path, **settings: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings["fan_in_fan_out"] = json.loads((base / "config.json").read_text())["model_type"] == "gpt2"
        model = get_peft_model(load_float32(base), LoraConfig(r=4, init_lora_weights=False, **settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".modules_to_save." in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def plainly(base: Path, adapter: Path | None) -> list[Any]:
    """The logits of each text alone, by PEFT on the whole model in float32."""
    from peft import PeftModel

    model = load_float32(base)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    found = []
    with torch.inference_mode():
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            if model.config.is_encoder_decoder:
                inputs = {"input_ids": prompt, "decoder_input_ids": [0, *answer[:-1]]}
            else:
                inputs = {"input_ids": [*prompt, *answer[:-1]]}
            found.append(model.eval()(**{name: torch.tensor([ids]) for name, ids in inputs.items()}).logits[0].numpy())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tinyllama", "qwen3", "gemma3", "distilgpt2", "flan-t5"])
def test_layer_by_layer_torch_computes_what_the_whole_model_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    # whose square root, the scale of Gemma's embedding, no type holds exactly
    monkeypatch.setitem(FAMILIES, name, dataclasses.replace(FAMILIES[name], settings=FAMILIES[name].settings | WIDTH))
    base = write_family(name, tmp_path / "base")
    stored_as(base, kind)
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=TARGETS.get(name, ["q_proj", "down_proj"]))
    trained = Trained(None, None, base, adapter, ())  # type: ignore[arg-type]
    streamed, whole = (Reference(trained, each).logits(PROMPTS, ANSWERS) for each in (STREAMED, WHOLE))
    for one, other, plain in zip(streamed, whole, plainly(base, adapter), strict=True):
        assert np.array_equal(one, other)
        assert np.abs(one - plain).max() < 2e-6 * np.abs(plain).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "o_proj"]},
        {"target_modules": ["v_proj"], "use_dora": True, "bias": "all"},
        {"target_modules": ["down_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
    ],
)
def test_trained_tables_biases_and_magnitudes_keep_their_precision(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = write_family("qwen2", tmp_path / "base")
    stored_as(base, "bfloat16")
    adapter = adapter_of(base, tmp_path / "adapter", **settings)
    trained = Trained(None, None, base, adapter, ())  # type: ignore[arg-type]
    found = Reference(trained, STREAMED).logits(PROMPTS, ANSWERS)
    for one, plain in zip(found, plainly(base, adapter), strict=True):
        assert np.abs(one - plain).max() < 2e-6 * np.abs(plain).max()


@pytest.mark.slow
def test_four_bits_are_widened_layer_by_layer_to_what_the_whole_model_has(tmp_path: Path) -> None:
    base = write_family("tinyllama", tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    trained = Trained(None, None, base, adapter, (), "nf4")  # type: ignore[arg-type]
    streamed, whole = (Reference(trained, each).logits(PROMPTS, ANSWERS) for each in (STREAMED, WHOLE))
    plain = plainly(base, adapter)
    for one, other, unrounded in zip(streamed, whole, plain, strict=True):
        assert np.array_equal(one, other)
        assert not np.allclose(one, unrounded, atol=1e-3)


@pytest.mark.slow
def test_while_one_layer_computes_the_others_take_no_memory(tmp_path: Path) -> None:
    base = write_family("tinyllama", tmp_path / "base")
    stored_as(base, "bfloat16")
    reference = Reference(Trained(None, None, base, None, ()), STREAMED)  # type: ignore[arg-type]
    widened: list[list[bool]] = []

    def taken() -> list[bool]:
        projections = [layer.mlp.up_proj.weight for layer in reference.model.model.layers]
        return [weight.untyped_storage().nbytes() >= weight.numel() * 4 for weight in projections]

    for layer in reference.model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: widened.append(taken()))
    reference.logits(PROMPTS, ANSWERS)
    assert widened == [[True, False], [False, True]]
    assert taken() == [False, False]


class CudaOnCpu(TorchFunctionMode):  # type: ignore[misc]  # torch has no types
    """Lets a processor stand for the device `cuda`, and counts the bytes that are moved or made there."""

    def __init__(self) -> None:
        self.moved, self.made = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        moves = func is torch.Tensor.to and "cuda" in map(str, args[1:])
        makes = str(kwargs.get("device")) == "cuda"
        if makes:
            kwargs["device"] = "cpu"
        found = func(*("cpu" if isinstance(each, str) and each == "cuda" else each for each in args), **kwargs)
        self.moved += found.nbytes if moves else 0
        self.made += found.nbytes if makes else 0
        return found


@pytest.mark.slow
def test_on_a_gpu_weights_and_texts_are_moved_there_and_logits_come_back(tmp_path: Path) -> None:
    base = write_family("gemma3", tmp_path / "base")
    stored_as(base, "bfloat16")
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    trained = Trained(None, None, base, adapter, ())  # type: ignore[arg-type]
    expected = Reference(trained, WHOLE).logits(PROMPTS, ANSWERS)
    size = model_size(base, adapter)
    for streamed in (False, True):
        with CudaOnCpu() as device:
            reference = Reference(trained, Placement("cuda", streamed, 0, 0))
            loaded = device.moved
            found = reference.logits(PROMPTS, ANSWERS)
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
        assert device.made > 0
        # layers travel in 16 bit: with the others at first, or in each pass
        layers = size.layers // 2
        assert loaded >= size.tables + (0 if streamed else layers) * 0.9
        assert device.moved - loaded >= (layers * 0.9 if streamed else 0)


GB = 10**9
MISTRAL = ModelSize(tables=1 * GB, layer=870 * 10**6, layers=28 * GB)
WORK = (GB // 2, GB)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (Memory(64 * GB), ("cpu", False)),
        (Memory(12 * GB), ("cpu", True)),  # Colab: 28 GB of weights in float32
        (Memory(12 * GB, 15 * GB, "Tesla T4"), ("cuda", True)),
        (Memory(12 * GB, 40 * GB, "A100"), ("cuda", False)),
        (Memory(12 * GB, 2 * GB, "small"), ("cpu", True)),
        (Memory(3 * GB, 2 * GB, "small"), None),
    ],
)
def test_the_gpu_computes_where_the_model_fits_else_the_processor_layer_by_layer(
    memory: Memory, expected: tuple[str, bool] | None
) -> None:
    found = place(MISTRAL, WORK, memory)
    assert (found and (found.device, found.streamed)) == expected


def test_a_gpu_that_is_there_and_not_used_is_told() -> None:
    for memory in (Memory(12 * GB, 2 * GB, "small"), Memory(12 * GB, unused="small: torch has no kernels for it")):
        assert "layer by layer" in str(place(MISTRAL, WORK, memory))
        assert "not on the GPU: small" in str(place(MISTRAL, WORK, memory))
    assert "GPU" not in str(place(MISTRAL, WORK, Memory(12 * GB)))


def test_weights_that_cannot_stay_in_their_files_count() -> None:
    assert place(dataclasses.replace(MISTRAL, held=14 * GB), WORK, Memory(12 * GB)) is None


def test_too_little_memory_is_refused_with_what_is_needed_and_what_was_not_proven(tiny_base: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        place_model(tiny_base, None, in_4bit=False, memory=Memory(100 * 10**6, 10**6, "Tesla T4"))
    for fact in ("100.0 MB", "12.6 MB for embeddings", "Tesla T4", "distributions, greedy answers", "Nothing was"):
        assert fact in str(caught.value)


def test_the_size_of_a_model_is_that_of_its_parameters_in_float32(tiny_base: Path, tiny_run: Path) -> None:
    model = load_float32(tiny_base)
    total = sum(parameter.numel() for parameter in model.parameters()) * 4
    size = model_size(tiny_base, None)
    assert size.tables + size.layers == total
    assert size.layers == 2 * size.layer > 0
    assert size.held == 0
    assert model_size(tiny_base, tiny_run / "adapter").tables > size.tables


def test_weights_of_several_types_are_read_without_rounding_and_counted(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = write_family("tinyllama", tmp_path / "base")
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"].bfloat16()}, path, {"format": "pt"})
    found = Reference(Trained(None, None, base, None, ()), STREAMED).logits(PROMPTS, ANSWERS)  # type: ignore[arg-type]
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16().float()
    assert model_size(base, None).held == tensors["lm_head.weight"].numel() * 4
    save_file(tensors, path, {"format": "pt"})
    for one, plain in zip(found, plainly(base, None), strict=True):
        assert np.abs(one - plain).max() < 2e-6 * np.abs(plain).max()
        assert torch.from_numpy(one).isfinite().all()
