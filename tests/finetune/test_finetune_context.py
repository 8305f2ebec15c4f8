"""Rows that are longer than the context of the base are refused before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finetune.cli import main
from finetune.config.load import load_recipe, recipe_names
from finetune.model.context_length import check_context, check_facts, context_tokens
from gladstone.errors import ConfigError
from gladstone.models.base_model import Base
from tests.tiny_models import write_model, write_rows_file

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LONGROPE = {"type": "longrope", "short_factor": [1.0], "long_factor": [1.2]}

# configs as the Hub has them: the kind, what states the context, and the context
STATED: list[tuple[dict[str, Any], int | None]] = [
    ({"model_type": "llama", "max_position_embeddings": 2048}, 2048),  # TinyLlama
    ({"model_type": "llama", "max_position_embeddings": 131_072, "rope_scaling": LLAMA3}, 131_072),  # Llama 3.2
    ({"model_type": "mistral", "max_position_embeddings": 32_768, "sliding_window": None}, 32_768),
    ({"model_type": "qwen2", "max_position_embeddings": 32_768, "rope_scaling": YARN}, 32_768),
    ({"model_type": "phi3", "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
      "rope_scaling": LONGROPE}, 131_072),  # Phi-4-mini
    ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 131_072}},
     131_072),
    ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),  # DistilGPT-2
    ({"model_type": "gptj", "n_positions": 2048}, 2048),
    ({"model_type": "t5", "n_positions": 512}, None),  # relative positions
    ({"model_type": "mt5"}, None),
    ({"model_type": "rwkv"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "context"), STATED, ids=[str(config["model_type"]) for config, _ in STATED])
def test_the_context_of_a_base_is_what_its_config_states(config: dict[str, Any], context: int | None) -> None:
    found = context_tokens(config)
    assert (found[1] if found else None) == context


def of(config: dict[str, Any], tokens: int) -> None:
    recipe = load_recipe("smollm2-135m-medical", [f"base.max_tokens={tokens}", "base.model=someone/model"])
    check_context(recipe, Base("someone/model", Path(), "", config))


@pytest.mark.parametrize(
    ("config", "context"), [each for each in STATED if each[1]], ids=[str(c["model_type"]) for c, n in STATED if n]
)
def test_rows_up_to_the_context_are_taken_and_longer_ones_are_refused(config: dict[str, Any], context: int) -> None:
    of(config, context)
    with pytest.raises(
        ConfigError, match=rf"^base\.max_tokens: .*{context + 1:,} tokens .*base\.max_tokens={context} "
    ):
        of(config, context + 1)


def test_the_refusal_says_what_training_beyond_the_context_would_do() -> None:
    for config, words in (
        (STATED[0][0], "linear RoPE scaling"),
        (STATED[1][0], "never trained"),
        (STATED[3][0], "in place of its own yarn scaling"),
        (STATED[6][0], "no positions beyond"),
    ):
        with pytest.raises(ConfigError, match=words):
            of(config, 200_000)


def test_a_config_that_leaves_the_context_to_transformers_has_its_default() -> None:
    of({"model_type": "llama"}, 2048)
    with pytest.raises(ConfigError, match="max_position_embeddings=2048"):
        of({"model_type": "llama"}, 2049)
    of({"model_type": "t5", "is_encoder_decoder": True}, 100_000)
    of({"model_type": "of-nobody"}, 100_000)


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name, []).hub])
def test_a_base_that_is_not_here_has_the_context_of_the_recipes_facts(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.hub is not None
    check_facts(recipe, recipe.hub)
    longer = load_recipe(name, [f"base.max_tokens={recipe.hub.context_tokens + 1}"])
    if recipe.hub.architecture.startswith("T5"):
        check_facts(longer, recipe.hub)
    else:
        with pytest.raises(ConfigError, match=rf"base\.max_tokens={recipe.hub.context_tokens} or less"):
            check_facts(longer, recipe.hub)


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_a_run_and_an_estimate_stop_before_they_load_anything(command: str, tmp_path: Path) -> None:
    base, rows = write_model(tmp_path / "base"), write_rows_file(tmp_path / "rows.jsonl")
    context = json.loads((base / "config.json").read_text())["max_position_embeddings"]
    (base / "model.safetensors").write_bytes(b"not read")
    arguments = ["smollm2-135m-medical", "--data", str(rows), "--set", f"base.model={base}"]
    arguments += ["--out", str(tmp_path / "out")] if command == "run" else []
    told = CliRunner().invoke(main, [command, *arguments, "--set", f"base.max_tokens={context + 1}"])
    assert told.exit_code == 1
    assert f"base.max_tokens={context} or less" in told.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))
