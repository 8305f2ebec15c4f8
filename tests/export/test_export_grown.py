"""Adapters with a vocabulary of their own, as PEFT saves them, against the model that PEFT held when it saved them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.convert.lora_gguf import pairs_of
from export.merge.adapter import read_adapter
from export.merge.plan import MergePlan, copy_config, plan_merge, planned_shards, read_plan, write_index, write_shard
from export.merge.tensor_names import pefts_name
from export.proof.reference import Reference
from export.proof.trained import Trained
from gladstone.commands.progress import Silent
from gladstone.errors import UnsupportedError
from tests.export.tiny_runs import load_float32

ROWS, GROWN, WIDTH = 100, 104, 16
NEW = [5, 100, 101, 102, 103]
LAYOUTS: dict[str, dict[str, Any]] = {
    "nothing of them": {},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "head whole": {"modules_to_save": ["lm_head"]},
    "LoRA of both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA of the head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding whole, LoRA of the head": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": NEW},
    "some tokens": {"trainable_token_indices": [5, 101]},
    "tokens by name": {"trainable_token_indices": {"embed_tokens": NEW}},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}},
    "other tokens of the head": {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": [6, *NEW[1:]]}},
    "tokens, LoRA of the head": {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": NEW},
    "both whole, kept tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embedding whole, kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "LoRA kept tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tokens kept tied": {"trainable_token_indices": NEW, "ensure_weight_tying": True},
}  # fmt: skip
NOT_SAVED = {  # by PEFT: rows that nobody can know
    ("LoRA of the embedding", False): "lm_head",
    ("LoRA of the head", False): "embed_tokens",
    ("LoRA kept tied", False): "lm_head",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A Llama of 100 tokens, tied and not."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    found = {}
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.3,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found[tied] = tmp_path_factory.mktemp("base")
            LlamaForCausalLM(config).save_pretrained(found[tied])
    return found


def train(base: Path, folder: Path, rows: int | None, **settings: Any) -> Any:
    """An adapter as PEFT saves it, all that it trains changed; the model in memory is what was trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    chosen: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = load_float32(base)
        if rows:
            model.resize_token_embeddings(rows)
        adapted = get_peft_model(model, LoraConfig(**(chosen | {"init_lora_weights": False} | settings)))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return adapted.eval()


def merged(base: Path, adapter: Path, out: Path) -> tuple[MergePlan, Any]:
    """The plan, and the merged folder as transformers loads it."""
    plan = plan_merge(
        base, [read_adapter(adapter, model_type=json.loads((base / "config.json").read_text())["model_type"])]
    )
    shards = planned_shards(plan, 1 << 30)
    for name, tensors in shards.items():
        write_shard(plan, out / name, tensors, Silent())
    write_index(shards, out)
    copy_config(plan, base, out)
    return plan, load_float32(out).eval()


def logits(model: Any, rows: int) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.arange(rows)[None]).logits[0]


def same_as_trained(found: Any, adapted: Any, rows: int) -> None:
    """Tables equal in every bit where no product was added to them, and the logits those of the trained model."""
    import torch

    ours, theirs = logits(found, rows), logits(adapted, rows)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())
    eye = torch.eye(found.get_output_embeddings().weight.shape[1])
    with torch.inference_mode():
        assert torch.allclose(
            found.get_input_embeddings()(torch.arange(rows)),
            adapted.get_input_embeddings()(torch.arange(rows)),
            rtol=0,
            atol=1e-6,
        )
        assert torch.allclose(
            found.get_output_embeddings()(eye), adapted.get_output_embeddings()(eye), rtol=0, atol=1e-6
        )


def _is_of_table(key: str) -> bool:
    return "lora_" in key and ("embed" in key or "lm_head" in key)


WARNINGS = (
    "ignore:Model has `tie_word_embeddings", "ignore:Setting `save_embedding_layers`", "ignore:You have requested",
    "ignore:ensure_weight_tying=True but", "ignore:The new embeddings will be", "ignore:Could not find a config",
    "ignore:The new lm_head weights", "ignore:Input and output embeddings are no longer tied", "ignore:Model with `tie_word_embeddings",
)  # fmt: skip
pytestmark = [pytest.mark.filterwarnings(each) for each in WARNINGS]


@pytest.mark.parametrize("grown", [True, False], ids=["grown", "as it was"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_merge_is_the_model_that_was_trained(
    bases: dict[bool, Path], tmp_path: Path, name: str, tied: bool, grown: bool
) -> None:
    settings = dict(LAYOUTS[name])
    if not grown and "trainable_token_indices" in settings:
        indices = settings["trainable_token_indices"]
        few = {id(NEW): [5, 7]}
        settings["trainable_token_indices"] = (
            {key: few.get(id(value), [6, 7]) for key, value in indices.items()} if isinstance(indices, dict) else [5, 7]
        )
    adapted = train(bases[tied], tmp_path / "adapter", GROWN if grown else None, **settings)
    lost = NOT_SAVED.get((name, tied)) if grown else None
    if lost:
        with pytest.raises(UnsupportedError, match=rf"grew from 100 to 104 rows.* of .*{lost}.*save_embedding_layers"):
            merged(bases[tied], tmp_path / "adapter", tmp_path / "merged")
        return
    plan, found = merged(bases[tied], tmp_path / "adapter", tmp_path / "merged")
    same_as_trained(found, adapted, GROWN if grown else ROWS)
    loaded = Reference(Trained(None, None, bases[tied], tmp_path / "adapter", ()))._model  # type: ignore[arg-type]
    assert logits(loaded, ROWS).equal(logits(adapted, ROWS))
    merges_one_for_both = tied and (name.startswith("other") or any(_is_of_table(key) for key in adapted.state_dict()))
    if not merges_one_for_both:  # as PEFT's own merge does of a tied pair, whatever was trained
        theirs = adapted.merge_and_unload(
            safe_merge=True
        )  # which changes both tables where one of a tied pair has LoRA
        assert found.get_input_embeddings().weight.equal(theirs.get_input_embeddings().weight)
        assert found.get_output_embeddings().weight.equal(theirs.get_output_embeddings().weight)
    assert (plan.sizes is not None) is grown
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == (GROWN if grown else ROWS)


def _with_adapters_name(key: str) -> str:
    return re.sub(r"\.(lora_(?:embedding_)?[AB]|trainable_tokens_delta|modules_to_save)", r".\1.default", key)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "a raw state dict": _with_adapters_name,
    "compiled": lambda key: key.replace("base_model.model.", "_orig_mod.base_model.model."),
    "distributed": lambda key: f"module.{key}",
    "without PEFT's own prefix": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["both whole", "LoRA of both", "some tokens"])
def test_other_spellings_of_the_same_adapter_are_the_same_model(
    bases: dict[bool, Path], tmp_path: Path, name: str, spelling: str
) -> None:
    from safetensors.torch import load_file, save_file

    adapted = train(bases[False], tmp_path / "adapter", GROWN, **LAYOUTS[name])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    shortened = {key.replace(".modules_to_save.", ".") for key in tensors if ".modules_to_save." in key}
    raw = spelling == "a raw state dict"  # without the names that only PEFT's saving gives to what was trained whole
    kept = {key: value for key, value in tensors.items() if not (raw and key in shortened)}
    respelled = {SPELLINGS[spelling](key): value for key, value in kept.items()}
    assert respelled.keys() != kept.keys()
    save_file(respelled, path)
    _, found = merged(bases[False], tmp_path / "adapter", tmp_path / "merged")
    same_as_trained(found, adapted, GROWN)
    loaded = Reference(Trained(None, None, bases[False], tmp_path / "adapter", ()))._model  # type: ignore[arg-type]
    assert logits(loaded, GROWN).equal(logits(adapted, GROWN))


def test_pefts_own_names_stay(bases: dict[bool, Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    for name in ("tokens", "LoRA of both", "both whole"):
        train(bases[True], tmp_path / name, GROWN, **LAYOUTS[name])
        with safe_open(tmp_path / name / "adapter_model.safetensors", "pt") as file:
            keys = set(file.keys())
        assert {pefts_name(key) for key in keys} <= keys


def test_two_values_of_one_table_are_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(bases[False], tmp_path, GROWN, **LAYOUTS["both whole"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.modules_to_save.weight"][3] += 1
    save_file(tensors, path)
    with pytest.raises(UnsupportedError, match=r"lm_head.weight twice with other values.*modules_to_save"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("rows", [96, 99])
def test_a_table_that_was_cut_is_the_adapters_own(bases: dict[bool, Path], tmp_path: Path, rows: int) -> None:
    """As `resize_token_embeddings(len(tokenizer))` leaves a table that had room."""
    adapted = train(bases[True], tmp_path / "adapter", rows)
    plan, found = merged(bases[True], tmp_path / "adapter", tmp_path / "merged")
    same_as_trained(found, adapted, rows)
    assert plan.sizes
    assert (plan.sizes.before, plan.sizes.after) == (ROWS, rows)


def test_a_file_to_lay_over_the_base_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    train(bases[True], tmp_path, GROWN, **LAYOUTS["tokens"])
    with pytest.raises(
        UnsupportedError, match=r"(?s)merge it with `gladstone export gguf`.*104 tokens, the base's 100"
    ):
        pairs_of(read_plan(bases[True], [(tmp_path, 1.0)], "16bit"))
