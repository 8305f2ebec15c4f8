"""How two model files tokenise text differently: vocabulary, merges, rules, BOS, chat template."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from bench.measure.token_counts import RowTokens
from bench.results import ModelFile
from gladstone.gguf.header import read_model

SHOWN = 3
VOCABULARY = "its vocabulary"  # the first word of a difference of vocabularies
TOKENS, TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
BOS, ADDS_BOS = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token"
# tokenizer keys that change neither how text is split nor what precedes it
_HARMLESS = ("scores", "_token_id", "add_eos_token", "add_sep_token")


def find_tokenizer_differences(models: Sequence[ModelFile]) -> dict[str, list[str]]:
    """The tokenizer differences of each later model to the first, by label; chat templates are not compared."""
    if len(models) == 1:
        return {}
    first = _tokenizer(models[0])
    return {model.label: _differences(first, _tokenizer(model), models[0].label) for model in models[1:]}


def find_token_mismatches(
    models: Sequence[ModelFile], tokens: Sequence[Sequence[RowTokens]], differences: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The models, by label, whose reference answers are other tokens than the first model's, and the reason."""
    found = {}
    for model, rows in zip(models[1:], tokens[1:], strict=True):
        pairs = zip(tokens[0], rows, strict=True)
        mismatches = next(((one, other) for one, other in pairs if one.pieces != other.pieces), None)
        if mismatches is None:
            continue
        why = list(differences[model.label])
        if model.template_sha256 != models[0].template_sha256 and not any(VOCABULARY in each for each in why):
            why.append(f"its chat template renders answers differently ({_shown(*mismatches)})")
        found[model.label] = "; ".join(why) or f"the answers are split differently ({_shown(*mismatches)})"
    return found


def _tokenizer(model: ModelFile) -> dict[str, Any]:
    metadata = read_model(model.path)[0].metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], label: str) -> list[str]:
    found = []
    if first.get(TOKENS) != other.get(TOKENS):
        found.append(f"{VOCABULARY} {_vocabulary(first.get(TOKENS, []), other.get(TOKENS, []), label)}")
    elif first.get(TYPES) != other.get(TYPES):
        found.append(f"different tokens are special in its vocabulary ({_types(first, other)})")
    if first.get(MERGES) != other.get(MERGES) and not found:
        found.append("its vocabulary has the same tokens but different merges")
    if bool(first.get(ADDS_BOS)) != bool(other.get(ADDS_BOS)):
        with_bos, without = ("it", label) if other.get(ADDS_BOS) else (label, "it")
        bos = _bos(other if other.get(ADDS_BOS) else first)
        found.append(f"{with_bos} starts every text with {bos} (BOS), {without} does not")
    keys = sorted((first.keys() | other.keys()) - {TOKENS, TYPES, MERGES, ADDS_BOS})
    rules = [key for key in keys if not key.endswith(_HARMLESS) and first.get(key) != other.get(key)]
    for key in rules:
        name = key.removeprefix("tokenizer.ggml.")
        found.append(f"its tokenizer has {name} {other.get(key)!s:.40}, that of {label} {first.get(key)!s:.40}")
    return found


def _vocabulary(first: Sequence[str], other: Sequence[str], label: str) -> str:
    shorter = min(len(first), len(other))
    if first[:shorter] == other[:shorter]:
        more = other[shorter:] or first[shorter:]
        named = ", ".join(map(repr, more[:SHOWN])) + (", …" if len(more) > SHOWN else "")
        tokens = "token" if len(more) == 1 else "tokens"
        return f"has {len(more):,} {'more' if len(other) > shorter else 'fewer'} {tokens} than {label} ({named})"
    place = next(place for place in range(shorter) if first[place] != other[place])
    return (
        f"is different ({len(other):,} tokens, {len(first):,} in {label}; the first different one is number {place}: "
        f"{other[place]!r}, {first[place]!r} in {label})"
    )


def _types(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    pairs = zip(first[TOKENS], first.get(TYPES, []), other.get(TYPES, []), strict=False)
    names = [repr(name) for name, one, two in pairs if one != two]
    return ", ".join(islice(names, SHOWN)) + (", …" if len(names) > SHOWN else "")


def _bos(tokenizer: Mapping[str, Any]) -> str:
    tokens, bos = tokenizer.get(TOKENS, []), tokenizer.get(BOS)
    return repr(tokens[bos]) if isinstance(bos, int) and bos < len(tokens) else "a token"


def _shown(first: RowTokens, other: RowTokens) -> str:
    """The start or the end at which two answers differ."""
    if first.begins != other.begins:
        return f"one starts with {other.begins!r}, {first.begins!r} in the first model"
    return f"one ends with {other.ends!r}, {first.ends!r} in the first model"
