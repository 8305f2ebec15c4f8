import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from export.merge.adapter import read_adapter, scaling
from export.merge.updates import LowRankUpdate
from gladstone.errors import ArtifactError, UnsupportedError

SOUND: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "fan_in_fan_out": False}
LAYER = "base_model.model.model.layers.0.q_proj"


def adapter(folder: Path, tensors: Mapping[str, tuple[int, ...]] | None = None, **fields: Any) -> Path:
    """An adapter of zeros with these shapes."""
    import torch
    from safetensors.torch import save_file

    (folder / "adapter_config.json").write_text(json.dumps(SOUND | fields))
    shapes = tensors or {f"{LAYER}.lora_A.weight": (16, 8), f"{LAYER}.lora_B.weight": (4, 16)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "adapter_model.safetensors")
    return folder


def only_update(folder: Path, **settings: Any) -> LowRankUpdate:
    ((update,),) = read_adapter(folder, **settings).updates.values()
    assert isinstance(update, LowRankUpdate)
    return update


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 8.0),
        ({"alpha_pattern": {"q_proj": 8}}, 0.5),
        ({"alpha_pattern": {"k_proj": 8}}, 2.0),
        ({"alpha_pattern": {"proj": 8}}, 2.0),  # a whole name is asked for
        ({"alpha_pattern": {"^model.layers.0.q_proj": 8, "q_proj": 4}}, 0.5),
        ({"alpha_pattern": {"layers.0.*": 8}, "use_rslora": True}, 2.0),
        ({"rank_pattern": {"q_proj": 16}, "r": 4}, 2.0),  # the tensors say it
    ],
)
def test_the_strength_is_pefts(tmp_path: Path, fields: dict[str, Any], strength: float) -> None:
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    assert only_update(adapter(tmp_path, **fields)).scale == strength
    assert only_update(adapter(tmp_path, **fields), weight=0.5).scale == strength / 2
    config = LoraConfig(**{key: value for key, value in (SOUND | fields).items() if key != "peft_type"})
    key = get_pattern_key(config.alpha_pattern.keys(), "model.layers.0.q_proj")
    alpha = config.alpha_pattern.get(key, config.lora_alpha)
    assert scaling(SOUND | fields, "model.layers.0.q_proj", 16) == alpha / (4 if config.use_rslora else 16)


@pytest.mark.parametrize(
    ("model_type", "flag", "transposed"),
    [("gpt2", False, True), ("llama", True, False), ("", True, True), ("", False, False)],
)
def test_the_model_decides_about_conv1d_before_the_flag(
    tmp_path: Path, model_type: str, flag: bool, transposed: bool
) -> None:
    folder = adapter(tmp_path, fan_in_fan_out=flag)
    assert only_update(folder, model_type=model_type).transposed is transposed


def test_gpt2s_head_is_no_conv1d(tmp_path: Path) -> None:
    head = {"base_model.model.lm_head.lora_A.weight": (16, 8), "base_model.model.lm_head.lora_B.weight": (4, 16)}
    assert not only_update(adapter(tmp_path, head, fan_in_fan_out=True), model_type="gpt2").transposed


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"use_qalora": True}, "use_qalora = true"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens = \[1, 2\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"something_new": 3}, "something_new = 3"),
        ({"init_lora_weights": "pissa_niter_4"}, "a part of the base was moved into the adapter"),
        ({"init_lora_weights": "loftq"}, "a part of the base was moved into the adapter"),
    ],
)
def test_a_setting_that_the_merge_does_not_know_is_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        read_adapter(adapter(tmp_path, **fields))


def test_everything_that_peft_writes_by_default_is_known(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert read_adapter(adapter(tmp_path, **config)).updates.keys() == {"model.layers.0.q_proj.weight"}


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="an adapter of peft_type LOHA: only LORA can be merged"):
        read_adapter(adapter(tmp_path, peft_type="LOHA"))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({f"{LAYER}.lora_A.weight": (16, 8)}, "without its lora_B"),
        ({f"{LAYER}.lora_B.weight": (4, 16)}, "which has no other half"),
        ({f"{LAYER}.lora_C.weight": (4, 16)}, "which this export cannot merge"),
        ({f"{LAYER}.token_adapter.trainable_tokens_delta": (2, 4)}, "do not say which"),
    ],
)
def test_no_tensor_is_dropped(tmp_path: Path, tensors: dict[str, tuple[int, ...]], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        read_adapter(adapter(tmp_path, tensors))


def test_a_dora_without_its_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"has no lora_magnitude_vector for model\.layers\.0\.q_proj"):
        read_adapter(adapter(tmp_path, use_dora=True))


def test_missing_weights_are_told(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_weights_are_told(tmp_path: Path, damage: bytes) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"damaged|holds no tensor"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"peft_type": "LORA", "r": "many"}', '{"r": 8}'])
def test_a_config_that_says_nothing_usable_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("rank", [0, -1])
def test_an_impossible_rank_is_refused(tmp_path: Path, rank: int) -> None:
    with pytest.raises(ArtifactError, match=f"r is {rank}"):
        read_adapter(adapter(tmp_path, r=rank))


def test_an_update_of_another_shape_belongs_to_another_base(tmp_path: Path) -> None:
    import torch

    with pytest.raises(UnsupportedError, match="it belongs to another base"):
        only_update(adapter(tmp_path)).apply(torch.zeros(5, 8))
