"""The shape of a base model, which determines memory and time of its training: widths and layers. No torch.

It is read from config.json, or reconstructed from a recipe's facts about a model on the Hub.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.config.schema import HubFacts
from gladstone import file_names
from gladstone.errors import UnsupportedError
from gladstone.models.base_model import Base

# the facts do not say whether head and embedding are one matrix: small vocabularies and large models have two matrices
# (Llama 2, Mistral, Llama 3 8B), the others one (Qwen3, Gemma 3, Llama 3.2)
UNTIED_VOCABULARY = 32_768
UNTIED_PARAMETERS = 5e9
# kinds that Unsloth computes in float32 where it would compute others in float16 (FORCE_FLOAT32 of unsloth_zoo's
# model_lists.py), and kinds whose layers it replaces by its own on a GPU (models/loader.py)
FORCED_FLOAT32 = ("embedding_gemma2", "embedding_gemma2_text", "gemma3", "gemma3_text", "gemma3n", "gemma4",
                  "gemma4_text", "glm4_moe", "glm4_moe_lite", "gpt_oss", "qwen3_5", "qwen3_moe")  # fmt: skip
FAST = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
SHARED_KEYS = 4  # assumed query heads per key head, if the facts do not say


@dataclass(frozen=True)
class Linear:
    """The linear layers of one name: their size, how many the model has, and which input they read."""

    name: str
    inputs: int
    outputs: int
    count: int
    reads: str  # layers of a block with the same value share their input

    @property
    def weights(self) -> int:
        """Weights of all layers of this name."""
        return self.count * self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """Sizes in features, not bytes; an encoder–decoder model has `layers` in each of the two."""

    kind: str  # 'llama', 'gpt2' or 't5': which tensors a block saves for its backward pass
    layers: int
    width: int
    inner: int
    heads: int
    query: int
    key: int
    vocabulary: int
    tied: bool
    linears: tuple[Linear, ...]
    norms: int = 2  # in a block
    twice: bool = False  # queries and keys are saved before and after a norm, or also in one tensor with the values
    refuses_packing: bool = False  # the attention does not support packed rows
    overflows_in_float16: bool = False  # computed in float32 on GPUs without bfloat16
    fast: bool = False  # Unsloth has kernels of its own for these layers on a GPU
    total: int | None = None  # number of parameters, if known exactly

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of the head if it is another matrix."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def linear_weights(self) -> int:
        """Weights that 4-bit quantisation converts."""
        return sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        """All weights, without the few of norms and positions if they are computed from the shape."""
        return self.total or self.embedding + self.linear_weights

    @property
    def is_encoder_decoder(self) -> bool:
        """True for an encoder–decoder model."""
        return self.kind == "t5"


def shape_of_base(base: Base) -> tuple[Shape, int]:
    """Return the shape of a base, and the size of its largest weights file in bytes; only their headers are read."""
    shape = shape_of_config(base.config)
    files = sorted(base.folder.glob(file_names.WEIGHTS_PATTERN))
    return replace(shape, total=sum(map(_weights_of, files))), max(path.stat().st_size for path in files)


def _weights_of(path: Path) -> int:
    """Count the weights of a safetensors file: an int64 length, a JSON header of that length, then the data."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def shape_of_config(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a config.json describes. Raises UnsupportedError if a size is missing."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and "hidden_size" in inner:
        config = inner
    kind = str(config.get("model_type", ""))
    try:
        if kind in ("t5", "mt5"):
            return _t5(config)
        return _gpt2(config) if kind == "gpt2" else _llama(config)
    except (KeyError, TypeError) as error:
        raise UnsupportedError(
            f"the config.json of a {kind or 'model'} lacks {error}: its training cannot be estimated."
        ) from None


def shape_of_facts(facts: HubFacts) -> Shape:
    """Return a shape that matches the facts: queries as wide as the model, a block's remaining weights in its MLP."""
    if facts.architecture.startswith("T5"):
        layers = facts.layers // 2
        tied = 1 if facts.width * facts.vocabulary * 2 > facts.parameters / 3 else 2
        block = (facts.parameters - tied * facts.vocabulary * facts.width) / layers
        feed_forward = 2 * 3 if "wi_1" in facts.linear else 2 * 2
        config = {"model_type": "t5", "d_model": facts.width, "num_layers": layers, "num_heads": facts.width // 64,
                  "d_kv": 64, "d_ff": round((block - 12 * facts.width**2) / facts.width / feed_forward),
                  "feed_forward_proj": "gated-gelu" if "wi_1" in facts.linear else "relu",
                  "tie_word_embeddings": tied == 1}  # fmt: skip
    elif facts.architecture.startswith("GPT2"):
        config = {"model_type": "gpt2", "n_embd": facts.width, "n_layer": facts.layers, "n_head": facts.width // 64}
    else:
        tied = not (facts.vocabulary <= UNTIED_VOCABULARY or facts.parameters >= UNTIED_PARAMETERS)
        embedding = facts.vocabulary * facts.width * (1 if tied else 2)
        block = (facts.parameters - embedding) / facts.layers
        heads = max(SHARED_KEYS, facts.width // 64)
        attention = 2 * facts.width**2 * (1 + 1 / SHARED_KEYS)
        fused = "qkv_proj" in facts.linear
        known = {"Gemma3ForCausalLM": "gemma3_text", "Qwen3ForCausalLM": "qwen3"}
        config = {"model_type": "phi3" if fused else known.get(facts.architecture, "llama"),
                  "hidden_size": facts.width, "num_hidden_layers": facts.layers, "num_attention_heads": heads,
                  "num_key_value_heads": heads // SHARED_KEYS, "head_dim": facts.width // heads,
                  "tie_word_embeddings": tied,
                  "intermediate_size": max(facts.width, round((block - attention) / 3 / facts.width))}  # fmt: skip
    shape = shape_of_config(config | {"vocab_size": facts.vocabulary})
    return replace(shape, total=int(facts.parameters))


def _llama(config: Mapping[str, Any]) -> Shape:
    """Llama and models of its structure; the feed-forward layer of an unknown kind is assumed four times as wide."""
    kind, width, layers = config.get("model_type", ""), config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or width // heads
    query, key = heads * head_width, (config.get("num_key_value_heads") or heads) * head_width
    inner = config.get("intermediate_size") or 4 * width
    if kind == "phi3":
        attention = [Linear("qkv_proj", width, query + 2 * key, layers, "attention")]
        feed_forward = [Linear("gate_up_proj", width, 2 * inner, layers, "mlp")]
    else:
        attention = [
            Linear(f"{name}_proj", width, out, layers, "attention")
            for name, out in (("q", query), ("k", key), ("v", key))
        ]
        feed_forward = [Linear(f"{name}_proj", width, inner, layers, "mlp") for name in ("gate", "up")]
    linears = [*attention, Linear("o_proj", query, width, layers, "attended"), *feed_forward,
               Linear("down_proj", inner, width, layers, "product")]  # fmt: skip
    return Shape(
        "llama", layers, width, inner, heads, query, key, config["vocab_size"],
        bool(config.get("tie_word_embeddings", str(kind).startswith("gemma"))), tuple(linears),
        norms=4 if kind in ("gemma2", "gemma3", "gemma3_text") else 2,
        twice=kind in ("phi3", "qwen3", "gemma3", "gemma3_text"),
        refuses_packing=bool(config.get("attention_dropout") or config.get("attn_logit_softcapping")),
        overflows_in_float16=kind in FORCED_FLOAT32,
        fast=kind in FAST,
    )  # fmt: skip


def _gpt2(config: Mapping[str, Any]) -> Shape:
    width, layers = config["n_embd"], config["n_layer"]
    inner = config.get("n_inner") or 4 * width
    linears = (
        Linear("c_attn", width, 3 * width, layers, "attention"),
        Linear("c_proj", width, width, layers, "attended"),
        Linear("c_fc", width, inner, layers, "mlp"),
        Linear("c_proj", inner, width, layers, "product"),
    )
    return Shape(
        "gpt2", layers, width, inner, config["n_head"], width, width, config["vocab_size"], True, linears,
        refuses_packing=bool(config.get("attn_pdrop", 0.1)),
    )  # fmt: skip


def _t5(config: Mapping[str, Any]) -> Shape:
    width, layers, inner = config["d_model"], config["num_layers"], config["d_ff"]
    query = config["num_heads"] * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    linears = [Linear(name, width, query, 3 * layers, "attention") for name in "qkv"]
    linears.append(Linear("o", query, width, 3 * layers, "attended"))
    linears += [Linear(name, width, inner, 2 * layers, "mlp") for name in (("wi_0", "wi_1") if gated else ("wi",))]
    linears.append(Linear("wo", inner, width, 2 * layers, "product"))
    return Shape(
        "t5", layers, width, inner, config["num_heads"], query, query, config["vocab_size"],
        bool(config.get("tie_word_embeddings", True)), tuple(linears), refuses_packing=True,
    )  # fmt: skip
