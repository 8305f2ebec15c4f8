from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.adapter import AdapterConfig, read_adapter_config
from export.convert import Conversion, convert_to_f16
from export.convert_child import _pairs, merge
from gladstone.errors import ToolError, UnsupportedError
from gladstone.progress import Silent
from tests.export.tiny_runs import edit_json, write_adapter
from tests.tiny_models import copy_model


def peft_merged(base: Path, adapter: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


def tensors_of(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"r": 3, "lora_alpha": 7}, {"target_modules": ["q_proj", "down_proj"]}],
    ids=["LoRA", "rsLoRA", "odd rank", "two targets"],
)
def test_the_merge_equals_pefts_own(tiny_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file

    write_adapter(tiny_base, tmp_path / "adapter", **settings)
    expected = peft_merged(tiny_base, tmp_path / "adapter").state_dict()
    weights = load_file(tiny_base / "model.safetensors")
    factors = dict(_pairs(load_file(tmp_path / "adapter" / "adapter_model.safetensors")))
    config = read_adapter_config(tmp_path / "adapter")
    assert len(factors) == 2 * len(settings.get("target_modules", range(7)))
    for name, weight in weights.items():
        ours = merge(weight, factors[name], config) if name in factors else weight.float()
        assert torch.allclose(ours, expected[name], rtol=0, atol=1e-6), name
        assert (name not in factors) == torch.equal(weight.float(), expected[name])


def test_the_merge_of_a_conv1d_layer_is_transposed() -> None:
    import torch

    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (in 2, out 3), as GPT-2 keeps it
    down, up = torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0], [2.0], [3.0]])  # (1, in 2), (out 3, 1)
    merged = merge(weight, (down, up), AdapterConfig(rank=1, scale=0.5, fan_in_fan_out=True))
    assert merged.tolist() == [[1.5, 3.0, 4.5], [9.0, 15.0, 21.0]]


def test_a_merge_of_16_bit_weights_is_done_in_float32() -> None:
    import torch

    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    factors = (torch.full((1, 1), 2**-6, dtype=torch.bfloat16), torch.full((1, 1), 2**-6, dtype=torch.bfloat16))
    merged = merge(weight, factors, AdapterConfig(rank=1, scale=1.0, fan_in_fan_out=False))
    assert merged.dtype == torch.float32
    assert merged.item() == 1 + 2**-12


@pytest.mark.slow
def test_the_gguf_equals_the_conversion_of_pefts_merged_folder(
    tiny_base: Path, tiny_run: Path, f16: Path, tmp_path: Path
) -> None:
    folder = copy_model(tiny_base, tmp_path / "merged")
    (folder / "model.safetensors").unlink()
    peft_merged(tiny_base, tiny_run / "adapter").save_pretrained(folder)
    expected = tmp_path / "expected.gguf"
    convert_to_f16(Conversion("tiny", folder, tiny_run / "tokenizer", None), expected, Silent())
    ours, theirs = tensors_of(f16), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        # one unit in the last place of float16, where float32 rounds the sum another way
        np.testing.assert_allclose(tensor.astype(np.float32), theirs[name].astype(np.float32), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_adapter_changes_the_tensors_it_targets_and_no_others(
    tiny_base: Path, tiny_run: Path, f16: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.gguf"
    convert_to_f16(Conversion("tiny", tiny_base, tiny_run / "tokenizer", None), plain, Silent())
    ours, base = tensors_of(f16), tensors_of(plain)
    changed = {name for name, tensor in ours.items() if not np.array_equal(tensor, base[name])}
    assert {name.split(".")[2] for name in changed} == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
    }  # fmt: skip
    assert len(changed) == 14


@pytest.mark.slow
def test_an_adapter_for_layers_the_model_lacks_is_refused_and_leaves_no_file(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    adapter = copy_model(tiny_run / "adapter", tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = {name.replace("layers.1.", "layers.7."): value for name, value in load_file(path).items()}
    save_file(tensors, path)
    out = tmp_path / "gguf" / "out.gguf"
    with pytest.raises(UnsupportedError, match=r"no tensor for the adapter's model\.layers\.7\..* \(of 7\)"):
        convert_to_f16(Conversion("tiny", tiny_base, tiny_run / "tokenizer", adapter), out, Silent())
    assert list(out.parent.iterdir()) == []


def test_an_adapter_with_half_of_a_pair_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"the adapter has .*lora_A\.weight without its lora_B"):
        dict(_pairs({"base_model.model.q.lora_A.weight": 1}))


def test_an_adapter_with_other_tensors_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"holds base_model\.model\.lm_head\.weight, which is no LoRA factor"):
        dict(_pairs({"base_model.model.lm_head.weight": 1}))


def test_an_architecture_that_the_converter_does_not_know_is_told(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    base = copy_model(tiny_base, tmp_path / "base")
    edit_json(base / "config.json", architectures=["NoSuchForCausalLM"], model_type="nosuch")
    with pytest.raises(UnsupportedError, match="does not know the architecture 'NoSuchForCausalLM'"):
        convert_to_f16(Conversion("tiny", base, tiny_run / "tokenizer", None), tmp_path / "out.gguf", Silent())


@pytest.mark.slow
def test_a_conversion_that_fails_gives_the_converters_last_lines_and_no_file(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    base = copy_model(tiny_base, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"cut")
    out = tmp_path / "gguf" / "out.gguf"
    with pytest.raises(ToolError, match=r"(?s)llama\.cpp's converter failed \(exit code 1\).*Traceback|Error"):
        convert_to_f16(Conversion("tiny", base, tiny_run / "tokenizer", None), out, Silent())
    assert list(out.parent.iterdir()) == []
