"""Corrects vocabularies that llama.cpp's converter reads wrongly, from tokenizer.json.

The converter reads sentencepiece models and the files of older transformers versions: it mistakes or drops the kind of
tokens added later, and invents scores for a sentencepiece tokenizer without its model file.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gladstone import file_names
from gladstone.gguf.types import TokenType
from gladstone.strict_json import json_text

TOKENS, TYPES, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
ADDED_SCORE = -1000.0


def read_tokenizer(folder: Path) -> dict[str, Any] | None:
    """tokenizer.json of a folder; None without one."""
    path = folder / file_names.TOKENIZER
    data: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return data


def is_sentencepiece_bpe(tokenizer: Mapping[str, Any]) -> bool:
    """True for the tokenizer.json of a sentencepiece BPE model (byte fallback, not byte-level)."""
    model = tokenizer.get("model") or {}
    return bool(model.get("type") == "BPE" and model.get("byte_fallback")) and '"ByteLevel"' not in json_text(
        [tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]
    )


def prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """True if a sentencepiece tokenizer prepends a space to a text."""
    normalizer, splitter = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", ())]
    cutters = [splitter, *splitter.get("pretokenizers", ())]
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or any(step.get("type") == "Metaspace" and _prepends(step) for step in cutters)


def _prepends(metaspace: Mapping[str, Any]) -> bool:
    always = "always" if metaspace.get("add_prefix_space", True) else "never"  # the older setting
    return bool(metaspace.get("prepend_scheme", always) != "never")


def merge_scores(tokenizer: Mapping[str, Any], tokens: list[Any]) -> list[float]:
    """Scores that order tokens by merge rank, as in sentencepiece."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(parts), rank)
    texts = (token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token) for token in tokens)
    return [-float(ranks[text]) if text in ranks else ADDED_SCORE * 1000 for text in texts]


def mend(
    values: Mapping[str, Any], tokenizer: Mapping[str, Any] | None, rows: int, looks_special: Callable[[str], bool]
) -> None:
    """Give every row an entry and every added token its text and type; `values` are the GGUF header's."""
    tokens, types = values[TOKENS].value, values[TYPES].value
    scores = values[SCORES].value if SCORES in values else None
    in_bytes = isinstance(tokens[0], bytes)
    for number in range(len(tokens), rows):
        tokens.append(_text(f"[PAD{number}]", in_bytes))
        types.append(TokenType.UNUSED)
        if scores is not None:
            scores.append(ADDED_SCORE)
    for entry in (tokenizer or {}).get("added_tokens") or ():
        number, text = int(entry["id"]), str(entry["content"])
        if number >= len(tokens) or types[number] not in (TokenType.NORMAL, TokenType.UNUSED, TokenType.USER_DEFINED):
            continue
        if entry.get("special") or looks_special(text):
            tokens[number], types[number] = _text(text, in_bytes), TokenType.CONTROL
        elif number >= _own_tokens(tokenizer or {}):
            tokens[number], types[number] = _text(as_found(entry, tokenizer or {}), in_bytes), TokenType.USER_DEFINED


def _text(text: str, in_bytes: bool) -> Any:
    return text.encode() if in_bytes else text


def _own_tokens(tokenizer: Mapping[str, Any]) -> int:
    return len((tokenizer.get("model") or {}).get("vocab") or ())


def as_found(added: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """The text by which llama.cpp finds an added token; includes the leading space if the tokenizer prepends one."""
    text, steps = str(added["content"]), tokenizer.get("normalizer") or {}
    kinds = [step.get("type") for step in (steps, *steps.get("normalizers", ()))]
    prepended = added.get("normalized") and "Prepend" in kinds and not text.startswith(("▁", " "))
    return f" {text}" if prepended else text.replace("▁", " ")
