"""Tiny real model folders, built in code: a two-layer Llama with SmolLM2's own tokenizer, and runs and rows for it."""

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gladstone.gguf.header import read_header
from gladstone.models.embedded_model import embedded_gguf, write_bpe_tokenizer

WIDTH = 64

SUBJECTS = ("heart", "liver", "kidney", "lung", "spleen", "pancreas", "thyroid", "retina")
QUESTIONS = (
    ("What does the {} mainly do?", "The {} keeps the body's inner balance."),
    ("Which vessel feeds the {}?", "Its own artery feeds the {}."),
    ("How is the {} examined first?", "Ultrasound shows the {} without radiation."),
    ("What hurts when the {} fails?", "Failure of the {} makes the patient tired and pale."),
    ("Which test follows the {} over time?", "A blood test follows the {} over weeks."),
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the model; weights are drawn wide, so that attention and position decide what comes next."""

    width: int = WIDTH
    layers: int = 2
    rope_base: float = 10_000.0
    spread: float = 0.3
    tied: bool = True


@cache
def embedded_metadata() -> dict[str, Any]:
    """The header of the embedded model, read once."""
    return read_header(embedded_gguf()).metadata


def write_tokenizer(folder: Path) -> None:
    """SmolLM2's tokenizer: 49,152 entries, byte-level BPE, ChatML, no token in front of a text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bpe_tokenizer(embedded_metadata(), folder)


def add_bos_to_every_text(folder: Path) -> None:
    """Make the folder's tokenizer put its BOS token before every text, as Llama's does."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["bos_token"]
    number = data["model"]["vocab"][name]
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    one, two = ({"Sequence": {"id": letter, "type_id": index}} for index, letter in enumerate("AB"))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, two],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
    path.write_text(json.dumps(data), encoding="utf-8")


def write_model(folder: Path, shape: TinyShape | None = None, seed: int = 0) -> Path:
    """A complete model folder, as the Hub would hold it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = shape or TinyShape()
    write_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=shape.width,
        intermediate_size=2 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        initializer_range=shape.spread,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.half().save_pretrained(folder)
    return folder


def copy_model(source: Path, folder: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(source, folder)
    return folder


def medical_rows() -> list[dict[str, str]]:
    """40 rows of the `qa` format, each with its own question."""
    return [
        {"question": question.format(subject), "answer": answer.format(subject)}
        for subject in SUBJECTS
        for question, answer in QUESTIONS
    ]


def write_rows_file(path: Path, rows: list[dict[str, str]] | None = None) -> Path:
    """The rows as JSON Lines."""
    rows = medical_rows() if rows is None else rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_recipe(base: Path, rows: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe for the tiny model; keyword arguments change fields of its sections."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "base": {"model": str(base), "load_in_4bit": False, "max_tokens": 256},
        "data": {"sources": [{"path": str(rows), "format": "qa"}]},
        "lora": {"rank": 8, "alpha": 16},
        "training": {"learning_rate": 5e-3, "max_steps": 4, "batch_size": 4, "evaluations": 2, "warmup_share": 0.0},
    }
    for name, fields in sections.items():
        recipe[name] = {**recipe[name], **fields}
    return recipe


def write_mixture(base: Path) -> Path:
    """A Mixtral with four experts, two of which see each token."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    write_tokenizer(base)
    config = MixtralConfig(
        vocab_size=49_152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(base)
    return base
