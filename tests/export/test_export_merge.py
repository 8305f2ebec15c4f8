import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.convert.convert import Conversion, convert
from export.convert.convert_child import as_half
from export.merge.adapter import read_adapter
from export.merge.plan import as_nf4, copy_config, plan_merge, planned_shards, write_index, write_shard
from export.merge.updates import LowRankUpdate
from export.tensors.safetensors_io import StoredTensor, read_header
from export.tensors.weights import read_folder
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ToolError, UnsupportedError
from tests.export.tiny_runs import edit_json, load_float32, write_adapter
from tests.families import FAMILIES, write_family
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


SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "odd rank": {"r": 3, "lora_alpha": 7},
    "two targets": {"target_modules": ["q_proj", "down_proj"]},
    "DoRA": {"use_dora": True},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True, "target_modules": ["k_proj", "up_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16}, "alpha_pattern": {"q_proj": 3, "^model.layers.0.mlp.*": 40}},
    "patterns of rsLoRA": {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 5}},
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "embedding and head": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "LoRA of the head": {"target_modules": ["q_proj", "lm_head"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 17, 300]},
    "biases": {"bias": "all"},
}  # fmt: skip


def logits_of(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model.eval()(torch.arange(3, 60)[None]).logits[0]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_merged_model_is_the_one_that_was_trained(
    tiny_base: Path, tmp_path: Path, settings: dict[str, Any], tied: bool
) -> None:
    """Against PEFT's own merge in every tensor; where a tied matrix had to be parted, against PEFT's logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = with_head(tiny_base, tmp_path / "base", tied=tied)
    write_adapter(base, tmp_path / "adapter", **settings)
    plan = plan_merge(base, [read_adapter(tmp_path / "adapter", model_type="llama")])
    shards = planned_shards(plan, 100_000)
    for name, tensors in shards.items():
        write_shard(plan, tmp_path / "merged" / name, tensors, Silent())
    write_index(shards, tmp_path / "merged")
    copy_config(plan, base, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    expected = logits_of(adapted)
    untouched = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, local_files_only=True)
    trained = {*settings.get("target_modules", ()), *settings.get("modules_to_save", ())}
    # PEFT adds the 49,152 squares of an embedding's length in float32, ours are added in float64
    lengths_of_columns = "use_dora" in settings and "embed_tokens" in trained
    rtol = 5e-5 if lengths_of_columns else 1e-6
    assert torch.allclose(logits_of(merged), expected, rtol=10 * rtol, atol=5e-4)
    assert (untouched - expected).abs().max() > 1e-2, "the adapter does nothing"
    assert plan.untied == (tied and bool({"embed_tokens", "lm_head"} & trained))
    if not plan.untied:
        theirs = adapted.merge_and_unload(safe_merge=True).state_dict()
        for name, tensor in merged.state_dict().items():
            assert torch.allclose(tensor, theirs[name], rtol=rtol, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["LoRA", "rsLoRA", "DoRA"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_merge_is_pefts(family: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Each tensor within 1e-6 of its largest weight's size: GPT-2's transposed ones, T5's two stacks, biases beside."""
    from peft import PeftModel

    base = write_family(family, tmp_path / "base")
    conv1d = {"fan_in_fan_out": True} if family == "distilgpt2" else {}
    kind = "SEQ_2_SEQ_LM" if family == "flan-t5" else "CAUSAL_LM"
    write_adapter(base, tmp_path / "adapter", target_modules=targets_of(family), task_type=kind, **conv1d, **more)
    model_type = json.loads((base / "config.json").read_text())["model_type"]
    plan = plan_merge(base, [read_adapter(tmp_path / "adapter", model_type=model_type)])
    model = load_float32(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload(safe_merge=True).state_dict()
    moved = {name for name, tensor in theirs.items() if not tensor.equal(before[name])}
    assert {name for name in plan.sources if name in plan.changed} == moved
    for name in plan.sources:
        wanted = theirs[name]
        assert (plan.read(name).float() - wanted).abs().max() <= 1e-6 * max(1, float(wanted.abs().max())), name


def targets_of(family: str) -> list[str]:
    """All linear layers of a family's blocks."""
    return {
        "flan-t5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        "distilgpt2": ["c_attn", "c_proj", "c_fc"],
        "phi4": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    }.get(family, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


def with_head(source: Path, folder: Path, *, tied: bool) -> Path:
    """The tiny model in float32, with a head of its own if it is not `tied`."""
    import torch
    from transformers import AutoModelForCausalLM

    copy_model(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def test_the_merge_of_a_conv1d_layer_is_transposed(tmp_path: Path) -> None:
    import torch

    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (in 2, out 3), as GPT-2 keeps it
    down, up = stored(tmp_path / "down", [[1.0, 10.0]]), stored(tmp_path / "up", [[1.0], [2.0], [3.0]])
    merged = LowRankUpdate("c_attn", down, up, None, 0.5, conv1d=True).apply(weight)
    assert merged.tolist() == [[1.5, 3.0, 4.5], [9.0, 15.0, 21.0]]


def stored(path: Path, values: list[list[float]]) -> StoredTensor:
    import torch
    from safetensors.torch import save_file

    save_file({"it": torch.tensor(values)}, path)
    return read_header(path)["it"]


def test_a_merge_of_16_bit_weights_is_done_in_float32(tmp_path: Path) -> None:
    import torch

    down = stored(tmp_path / "down", [[2**-6]])
    merged = LowRankUpdate("q", down, down, None, 1.0).apply(torch.ones(1, 1, dtype=torch.bfloat16).float())
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
    convert(Conversion("tiny", folder, tiny_run / "tokenizer"), expected, Silent())
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
    convert(Conversion("tiny", tiny_base, tiny_run / "tokenizer"), plain, Silent())
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
    with pytest.raises(UnsupportedError, match=r"no tensor for its model\.layers\.7\..* \(of 7\)"):
        convert(Conversion("tiny", tiny_base, tiny_run / "tokenizer", ((adapter, 1.0),)), out, Silent())
    assert list(out.parent.iterdir()) == []


def test_an_architecture_that_the_converter_does_not_know_is_told(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    base = copy_model(tiny_base, tmp_path / "base")
    edit_json(base / "config.json", architectures=["NoSuchForCausalLM"], model_type="nosuch")
    with pytest.raises(UnsupportedError, match="does not know the architecture 'NoSuchForCausalLM'"):
        convert(Conversion("tiny", base, tiny_run / "tokenizer"), tmp_path / "out.gguf", Silent())


@pytest.mark.slow
def test_a_conversion_of_damaged_weights_is_told_and_leaves_no_file(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    base = copy_model(tiny_base, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"cut")
    out = tmp_path / "gguf" / "out.gguf"
    with pytest.raises(ArtifactError, match=r"model\.safetensors: no safetensors file, or damaged"):
        convert(Conversion("tiny", base, tiny_run / "tokenizer"), out, Silent())
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_a_converter_that_fails_gives_its_last_lines_and_no_file(
    tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    base = copy_model(tiny_base, tmp_path / "base")
    edit_json(base / "config.json", num_hidden_layers="two")
    out = tmp_path / "gguf" / "out.gguf"
    with pytest.raises(ToolError, match=r"(?s)llama\.cpp's converter failed \(exit code 1\).*Error"):
        convert(Conversion("tiny", base, tiny_run / "tokenizer"), out, Silent())
    assert list(out.parent.iterdir()) == []


def test_two_adapters_add_up_by_their_weights(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    for name, settings in (("first", {}), ("second", {"r": 4, "target_modules": ["q_proj"]})):
        write_adapter(tiny_base, tmp_path / name, **settings)
    base = read_folder(tiny_base)
    name = "model.layers.0.self_attn.q_proj.weight"
    parts = [plan_merge(tiny_base, [read_adapter(tmp_path / each)]).read(name) for each in ("first", "second")]
    adapters = [read_adapter(tmp_path / "first", 0.75), read_adapter(tmp_path / "second", -0.5)]
    merged = plan_merge(tiny_base, adapters).read(name)
    weight = base[name].read().float()
    expected = weight + 0.75 * (parts[0] - weight) - 0.5 * (parts[1] - weight)
    assert torch.allclose(merged, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["norm"]}], ids=["DoRA", "whole"])
def test_what_does_not_add_up_is_refused(tiny_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    for name in ("first", "second"):
        write_adapter(tiny_base, tmp_path / name, **settings)
    with pytest.raises(UnsupportedError, match="updates cannot be added"):
        plan_merge(tiny_base, [read_adapter(tmp_path / "first"), read_adapter(tmp_path / "second")])
    with pytest.raises(UnsupportedError, match=r"cannot be scaled by 0\.5"):
        read_adapter(tmp_path / "first", 0.5)


def test_nf4_is_what_bitsandbytes_computes_with() -> None:
    """bitsandbytes' own layer, whose weight is quantised when it is moved, against our round trip of the weight."""
    import torch
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    weight = torch.randn(128, 192)
    layer = Linear4bit(192, 128, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    layer = layer.to("cpu")
    x = torch.randn(5, 192)
    assert torch.allclose(layer(x), x @ as_nf4(weight).T, atol=1e-4)
    assert 0.01 < (as_nf4(weight) - weight).abs().mean() < 0.2


def test_onto_nf4_only_the_layers_matrices_change(tiny_base: Path) -> None:
    import torch

    plan = plan_merge(tiny_base, [], "nf4")
    changed = {
        name for name in plan.sources if not torch.equal(plan.read(name).float(), plan.sources[name].read().float())
    }
    assert changed == plan.nf4 == {name for name in plan.sources if name.endswith("_proj.weight")}


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_merge_that_is_not_finite_is_refused(tiny_base: Path, tmp_path: Path, broken: float) -> None:
    from safetensors.torch import load_file, save_file

    write_adapter(tiny_base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(each for each in tensors if "q_proj.lora_B" in each)
    tensors[name][3, 1] = broken
    save_file(tensors, path)
    plan = plan_merge(tiny_base, [read_adapter(tmp_path / "adapter")])
    with pytest.raises(UnsupportedError, match="contains NaN or Inf after the merge"):
        plan.read(name.removeprefix("base_model.model.").replace(".lora_B", ""))


def test_halves_are_rounded_as_numpy_rounds_them() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint64).astype(np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    hard = np.concatenate([bits.view(np.float32), halves, (halves[1:] + halves[:-1]) / 2])  # ties, subnormals
    hard = hard[np.isfinite(hard)]
    with np.errstate(over="ignore"):
        expected = hard.astype(np.float16)
    assert as_half(hard).tobytes() == expected.tobytes()
