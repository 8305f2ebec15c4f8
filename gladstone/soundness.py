"""Is what a GGUF header says possible? Each check stands for something that llama.cpp does not refuse but dies of.

A failed assertion in llama.cpp ends the whole process. The limits are those of its llama-hparams.h and llama-model.cpp.
"""

import math
from collections import Counter
from typing import Any

MAX_LAYERS, MAX_EXPERTS = 512, 1024
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


class DamagedError(Exception):
    """Something in the header contradicts the file or itself; caught by `read_header`, which knows the path."""


def check_metadata(metadata: dict[str, Any]) -> None:
    """Raises DamagedError for sizes or a vocabulary that no model can have."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise DamagedError("it does not name an architecture")
    _check_sizes(metadata, architecture)
    _check_experts(metadata, architecture)
    for key, value in metadata.items():
        is_epsilon = key.startswith(f"{architecture}.") and key.endswith("_epsilon")
        if is_epsilon and not (isinstance(value, float) and math.isfinite(value) and value >= 0):
            raise DamagedError(f"{key} is {value!r}, expected a small positive number")
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise DamagedError(f"{architecture}.rope.scaling.type is {scaling!r}, expected {', '.join(ROPE_SCALINGS)}")
    if "tokenizer.ggml.tokens" in metadata:
        _check_vocabulary(metadata, metadata["tokenizer.ggml.tokens"])


def _check_sizes(metadata: dict[str, Any], architecture: str) -> None:
    layers = metadata.get(f"{architecture}.block_count", MAX_LAYERS)
    limits = {
        "context_length": (0, 2**32 - 1),
        "block_count": (1, MAX_LAYERS),
        "nextn_predict_layers": (0, layers),
    }
    for name, (least, most) in limits.items():
        value = metadata.get(f"{architecture}.{name}", least)
        if not isinstance(value, int) or not least <= value <= most:
            raise DamagedError(f"{architecture}.{name} is {value!r}, expected a number from {least:,} to {most:,}")


def _check_experts(metadata: dict[str, Any], architecture: str) -> None:
    count = metadata.get(f"{architecture}.expert_count", 0)
    used = metadata.get(f"{architecture}.expert_used_count", 0)
    each = used if isinstance(used, list) else [used]  # some models use another number in each layer
    if not isinstance(count, int) or not all(isinstance(number, int) for number in each):
        raise DamagedError(f"its number of experts is {count!r}, of those used {used!r}: expected whole numbers")
    most = max(each, default=0)
    if not 0 <= count <= MAX_EXPERTS or not 0 <= most <= count or (count and not most):
        raise DamagedError(f"it claims {count:,} experts and to use {most:,} of them")


def _check_vocabulary(metadata: dict[str, Any], tokens: Any) -> None:
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DamagedError("its vocabulary is not a list of texts")
    known = set(tokens)
    if len(known) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise DamagedError(f"the vocabulary holds {twice!r} twice")
    for key in ("token_type", "scores"):
        entries = metadata.get(f"tokenizer.ggml.{key}")
        if entries is not None and (not isinstance(entries, list) or len(entries) != len(tokens)):
            raise DamagedError(f"tokenizer.ggml.{key} does not have one entry for each of {len(tokens):,} tokens")
    for key, value in metadata.items():
        names_token = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if names_token and not (isinstance(value, int) and 0 <= value < len(tokens)):
            raise DamagedError(f"{key} is {value!r}, outside the vocabulary of {len(tokens):,}")
    if metadata.get("tokenizer.ggml.model") == "llama":
        for byte in range(256):  # SentencePiece spells unknown characters byte by byte
            if f"<0x{byte:02X}>" not in known and not (byte < 128 and chr(byte) in known):
                raise DamagedError(f"the vocabulary has no token for the byte 0x{byte:02X}")
