"""Adapters are checked before llama.cpp loads them: damaged ones are refused, valid ones load."""

from pathlib import Path
from typing import Any

import pytest

from gladstone.errors import ArtifactError, ConfigError, UnsupportedError
from gladstone.gguf.header import read_model
from gladstone.llamacpp.lora import Lora, check_lora, parse_lora
from tests.gladstone.gguf_files import ARRAY, BOOL, F32, F64, STRING, U32, Array, Gguf, TensorEntry

DOWN, UP = (
    TensorEntry("blk.0.attn_q.weight.lora_a", (32, 2), 0, 0),
    TensorEntry("blk.0.attn_q.weight.lora_b", (2, 4), 0, 256),
)


def adapter(**changes: Any) -> Gguf:
    """A sound adapter of one pair of rank 2 over (32, 4); keys are given with `__` for a dot."""
    kinds = {str: STRING, float: F32, bool: BOOL}
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.type": (STRING, "adapter"),
        "adapter.type": (STRING, "lora"),
        "adapter.lora.alpha": (F32, 0.0),
    }
    for name, value in changes.items():
        keys[name.replace("__", ".")] = value if isinstance(value, tuple) else (kinds[type(value)], value)
    return Gguf([(name, kind, value) for name, (kind, value) in keys.items()], [DOWN, UP], data=bytes(512))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(Gguf(tensors=[TensorEntry("blk.0.attn_q.weight")], data=bytes(512)).content())
    return path


def check(file: Gguf, model: Path) -> None:
    path = model.with_name("adapter.gguf")
    path.write_bytes(file.content())
    check_lora(path, read_model(model))


def test_a_sound_adapter_is_taken(model: Path) -> None:
    check(adapter(), model)
    check(adapter(tokenizer__chat_template="{{ messages[0].content }}"), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__type": "model"}, r"not a LoRA adapter \(general.type is 'model'\)"),
        ({"adapter__type": "dora"}, "not a LoRA adapter"),
        ({"general__architecture": "qwen3"}, "architecture is 'qwen3', the model's is 'llama'"),
        ({"adapter__lora__alpha": (F64, 1.0)}, "adapter.lora.alpha is 1.0, expected a finite f32"),
        ({"adapter__lora__alpha": (U32, 1)}, "adapter.lora.alpha is 1, expected"),
        ({"adapter__lora__alpha": float("nan")}, "adapter.lora.alpha is nan, expected"),
        ({"tokenizer__chat_template": "another"}, "another chat template than that of model.gguf"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(changes: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        check(adapter(**changes), model)


def test_an_adapter_that_acts_from_certain_words_on_is_refused(model: Path) -> None:
    with pytest.raises(UnsupportedError, match="aLoRA"):
        check(adapter(adapter__alora__invocation_tokens=(ARRAY, Array(U32, [1]))), model)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([DOWN], "blk.0.attn_q.weight has only one of its two matrices"),
        ([], "holds no tensor"),
        ([DOWN, TensorEntry(UP.name, (3, 4), 0, 256)], "whose blk.0.attn_q.weight is missing or of another shape"),
        ([TensorEntry(DOWN.name, (16, 2), 0, 0), UP], "of another shape"),
        ([TensorEntry(DOWN.name, (32,), 0, 0), UP], "of another shape"),
        ([TensorEntry("blk.1.attn_q.weight.lora_a", (32, 2), 0, 0), TensorEntry("blk.1.attn_q.weight.lora_b", (2, 4), 0, 256)],
         "whose blk.1.attn_q.weight is missing"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_fit_are_refused(tensors: list[TensorEntry], message: str, model: Path) -> None:
    file = adapter()
    file.tensors = tensors
    with pytest.raises(ArtifactError, match=message):
        check(file, model)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            TensorEntry("blk.0.attn_norm.weight", (32,), 0, 0),
            "holds blk.0.attn_norm.weight, which llama.cpp would ignore",
        ),
        (TensorEntry(DOWN.name, (32, 2), 2, 0), "is of type Q4_0"),
    ],
)
def test_what_llama_cpp_would_leave_out_or_cannot_use_is_refused(
    tensor: TensorEntry, message: str, model: Path
) -> None:
    file = adapter()
    file.tensors = [tensor]
    with pytest.raises(UnsupportedError, match=message):
        check(file, model)


def test_a_scale_is_read_after_the_last_equals_sign(tmp_path: Path) -> None:
    assert parse_lora("a.gguf") == Lora(Path("a.gguf"), 1.0)
    assert parse_lora("a=b.gguf=-0.5") == Lora(Path("a=b.gguf"), -0.5)
    odd = tmp_path / "lr=2.gguf"
    odd.touch()
    assert parse_lora(str(odd)) == Lora(odd, 1.0)


@pytest.mark.parametrize("text", ["a.gguf=much", "a.gguf=nan", "a.gguf=inf", "a.gguf="])
def test_a_scale_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected FILE or FILE=SCALE"):
        parse_lora(text)
