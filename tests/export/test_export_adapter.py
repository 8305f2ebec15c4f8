import json
from pathlib import Path
from typing import Any

import pytest

from export.adapter import AdapterConfig, read_adapter_config
from gladstone.errors import ArtifactError, UnsupportedError

SOUND = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "fan_in_fan_out": False}


def adapter(folder: Path, *, weights: bool = True, **fields: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(SOUND | fields))
    if weights:
        (folder / "adapter_model.safetensors").write_bytes(b"not read here")
    return folder


def test_the_strength_is_alpha_by_rank(tmp_path: Path) -> None:
    assert read_adapter_config(adapter(tmp_path)) == AdapterConfig(rank=16, scale=2.0, fan_in_fan_out=False)


def test_the_strength_of_rslora_is_alpha_by_the_root_of_the_rank(tmp_path: Path) -> None:
    assert read_adapter_config(adapter(tmp_path, use_rslora=True)).scale == 8.0


def test_the_orientation_of_conv1d_is_read(tmp_path: Path) -> None:
    assert read_adapter_config(adapter(tmp_path, fan_in_fan_out=True)).fan_in_fan_out


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules (modules_to_save)"),
        ({"rank_pattern": {"q_proj": 4}}, "ranks that differ by layer (rank_pattern)"),
        ({"alpha_pattern": {"q_proj": 4}}, "strengths that differ by layer (alpha_pattern)"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"use_dora": True, "bias": "all"}, "DoRA, trained biases"),
    ],
)
def test_an_adapter_that_would_be_merged_wrongly_is_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read_adapter_config(adapter(tmp_path, **fields))
    assert str(caught.value) == f"{tmp_path}: the adapter has {told}, which this export cannot merge."


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="an adapter of type 'LOHA'; LORA can be merged"):
        read_adapter_config(adapter(tmp_path, peft_type="LOHA"))


def test_empty_patterns_are_no_obstacle(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"use_dora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}
    assert read_adapter_config(adapter(tmp_path, **fields)).rank == 16


def test_missing_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is missing \(pickled adapters are not loaded"):
        read_adapter_config(adapter(tmp_path, weights=False))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"r": "many", "lora_alpha": 1}', '{"r": 8}'])
def test_a_config_that_says_nothing_usable_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"not a LoRA adapter: adapter_config\.json is missing or unusable"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("rank", [0, -1])
def test_an_impossible_rank_is_refused(tmp_path: Path, rank: int) -> None:
    with pytest.raises(ArtifactError, match="not a LoRA adapter"):
        read_adapter_config(adapter(tmp_path, r=rank))
