"""Bases of four layers with random weights, at the real width and vocabulary of well-known models, and their rows.

Names torch and transformers inside functions.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.tokens.examples import IGNORED, Example, PairExample, TokenizedExample
from tests.families import FAMILIES as TOKENIZERS
from tests.families import write_tokenizer

LAYERS = 4
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA = {"num_hidden_layers": LAYERS}
FIRST_TOKEN = 10  # special tokens have lower ids in every vocabulary here, or the very last of the tokenizer


@dataclass(frozen=True)
class Family:
    """A model family: transformers' names of its classes, its real sizes, and how a recipe trains it."""

    architecture: str
    config: str
    tokenizer: str
    sizes: dict[str, Any]
    tiny: dict[str, Any]
    targets: tuple[str, ...] = LINEAR
    template: str | None = None
    four_bit: bool = True
    encodes: bool = False  # an encoder reads the prompt; it is trained in float32, without Unsloth
    settings: dict[str, Any] = field(default_factory=dict)

    def chosen(self, *, tiny: bool) -> dict[str, Any]:
        """The sizes, real or tiny."""
        return self.tiny if tiny else self.sizes

    @property
    def width(self) -> str:
        """The name of the field with the hidden size."""
        return next(name for name in ("hidden_size", "n_embd", "d_model") if name in self.sizes)


def _decoder(width: int, inner: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": keys,
        "num_hidden_layers": LAYERS, "vocab_size": vocabulary, "max_position_embeddings": 32_768, **more,
    }  # fmt: skip


TINY = _decoder(64, 128, 4, 2, 2048, num_hidden_layers=2)
SLIDING = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]

FAMILIES = {
    # mistralai/Mistral-7B-Instruct-v0.2
    "mistral": Family(
        "MistralForCausalLM", "MistralConfig", "mistral", _decoder(4096, 14336, 32, 8, 32_000), TINY,
        settings={"sliding_window": None, "tie_word_embeddings": False},
    ),
    # Qwen/Qwen3-1.7B
    "qwen3": Family(
        "Qwen3ForCausalLM", "Qwen3Config", "qwen3", _decoder(2048, 6144, 16, 8, 151_936, head_dim=128),
        TINY | {"head_dim": 16}, settings={"tie_word_embeddings": True},
    ),
    # google/gemma-3-1b-it
    "gemma3": Family(
        "Gemma3ForCausalLM", "Gemma3TextConfig", "gemma3",
        _decoder(1152, 6912, 4, 1, 262_144, head_dim=256, sliding_window=512, layer_types=SLIDING),
        TINY | {"head_dim": 16, "sliding_window": 64, "layer_types": SLIDING[-2:]},
        settings={"tie_word_embeddings": True},
    ),
    # HuggingFaceTB/SmolLM2-135M-Instruct
    "smollm2": Family(
        "LlamaForCausalLM", "LlamaConfig", "smollm3", _decoder(576, 1536, 9, 3, 49_152), TINY,
        settings={"tie_word_embeddings": True},
    ),
    # distilbert/distilgpt2
    "gpt2": Family(
        "GPT2LMHeadModel", "GPT2Config", "distilgpt2",
        {"n_embd": 768, "n_head": 12, "n_layer": LAYERS, "vocab_size": 50_257, "n_positions": 1024},
        {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 2048, "n_positions": 1024},
        targets=("c_attn", "c_proj"), template="template:question-answer", four_bit=False,
        settings={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    # google/flan-t5-base
    "t5": Family(
        "T5ForConditionalGeneration", "T5Config", "flan-t5",
        {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": LAYERS, "vocab_size": 32_128},
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "vocab_size": 2048},
        targets=("q", "v"), template="template:flan-t5-medical", four_bit=False, encodes=True,
        settings={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0,
                  "decoder_start_token_id": 0},
    ),
}  # fmt: skip


def write_base(name: str, folder: Path, *, tiny: bool) -> None:
    """A model folder as the Hub would hold it: random weights of bfloat16 precision, a small tokenizer of its kind."""
    import torch
    import transformers

    family, sizes = FAMILIES[name], FAMILIES[name].chosen(tiny=tiny)
    folder.mkdir(parents=True)
    write_tokenizer(TOKENIZERS[family.tokenizer], folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = {kind: getattr(tokenizer, kind) for kind in ("bos_token_id", "eos_token_id", "pad_token_id")}
    spread = 1.3 / math.sqrt(sizes[family.width])  # attention and answers differ from position to position
    config = getattr(transformers, family.config)(**sizes, **family.settings, **ids, initializer_range=spread)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = getattr(transformers, family.architecture)(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".bias"):  # which begin as 0, so that nobody would miss them
                parameter.normal_(std=0.1)
        if family.encodes:  # transformers draws T5's head for logits 1/width times as large
            model.lm_head.weight.normal_(std=spread)
    model.to(torch.bfloat16).save_pretrained(folder)


def make_recipe(name: str, base: Path, *, four_bit: bool, fused: bool, **training: Any) -> Recipe:
    """The recipe of a family: rank 16 on its usual layers, `training` changes fields of that section."""
    family = FAMILIES[name]
    made = {
        "name": f"gpu-check-{name}",
        "base": {
            "model": str(base), "load_in_4bit": four_bit, "max_tokens": 1024, "long_rows": "cut",
            "chat_template": family.template, "max_target_tokens": 256 if family.encodes else None,
        },
        "data": {
            "sources": [{"path": "sample:flashcards", "format": "qa"}], "max_rows": 48, "validation": 8, "test": 8,
        },
        "lora": {"rank": 16, "alpha": 32, "targets": list(family.targets)},
        "training": {
            "learning_rate": 1e-3, "schedule": "constant", "warmup_share": 0.0, "batch_size": 4, "max_steps": 10,
            "evaluations": 1, "gradient_checkpointing": "off",
            "optimizer": "adamw_torch_fused" if fused else "adamw_torch",
        } | training,
    }  # fmt: skip
    return Recipe.model_validate(made)


@dataclass(frozen=True)
class Rows:
    """Rows of random tokens out of the whole vocabulary: `count` of up to `tokens`, half of each scored."""

    count: int
    tokens: int
    even: bool = True  # False: the lengths differ, so that rows are padded

    def shrunk(self, *, tiny: bool) -> "Rows":
        """On a processor a sixteenth of the tokens."""
        return replace(self, tokens=max(16, self.tokens // 16)) if tiny else self

    def examples(self, name: str, vocabulary: int) -> Sequence[Example]:
        """The same rows for every caller."""
        chance = random.Random(f"{name} {self}")
        return [self._example(FAMILIES[name], chance, number, vocabulary) for number in range(self.count)]

    def _example(self, family: Family, chance: random.Random, number: int, vocabulary: int) -> Example:
        length = self.tokens if self.even else self.tokens - number * self.tokens // (2 * self.count)
        ids = [chance.randrange(FIRST_TOKEN, vocabulary) for _ in range(length)]
        half = length // 2
        if family.encodes:
            return PairExample(tuple(ids[:half]), tuple(ids[half:]))
        return TokenizedExample(tuple(ids), (IGNORED,) * half + tuple(ids[half:]))
