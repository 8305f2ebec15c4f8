"""Tiny models as others make them: without a template, without an end, with a template of another kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.tiny_ggufs import tiny_bpe
from tests.gladstone.gguf_files import STRING

TEMPLATE, EOS, BOS = "tokenizer.chat_template", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id"


def write_tiny(path: Path, changes: Mapping[str, Any]) -> Path:
    """A tiny model with other values of some keys; None takes a key out."""
    model = tiny_bpe()
    kinds = {name: kind for name, kind, _ in model.keys} | {TEMPLATE: STRING}
    values = {name: value for name, _, value in model.keys} | dict(changes)
    model.keys = [(name, kinds[name], value) for name, value in values.items() if value is not None]
    path.write_bytes(model.content())
    return path
