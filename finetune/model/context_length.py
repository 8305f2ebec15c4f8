"""The longest row that a base has positions for, and the refusal of rows beyond it. Names transformers."""

from collections.abc import Mapping
from typing import Any

from finetune.config.schema import HubFacts, Recipe
from finetune.model.load import import_first
from gladstone.errors import ConfigError
from gladstone.models.base_model import Base

FIELDS = ("max_position_embeddings", "n_positions", "n_ctx")
LEARNED = ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm")  # a table of positions: there are no others
RELATIVE = ("t5", "mt5", "umt5", "longt5", "switch_transformers")  # distances: `n_positions` limits nothing


def check_context(recipe: Recipe, base: Base) -> None:
    """Raise ConfigError if rows of base.max_tokens are longer than the base's context; reads only its config.json."""
    found = context_tokens(base.config)
    if found is None:  # a config without it is of transformers' default, and Unsloth is imported before transformers
        import_first(base)
        found = _default(base.config)
    if found is not None and recipe.base.max_tokens > found[1]:
        raise _beyond(recipe, f"{found[0]}={found[1]} in its config.json", found[1], _consequence(base.config))


def check_facts(recipe: Recipe, facts: HubFacts) -> None:
    """As `check_context`, for a base that is not on this machine. An encoder–decoder model has no limit."""
    if facts.architecture.startswith(("T5", "MT5")) or recipe.base.max_tokens <= facts.context_tokens:
        return
    stated = f"hub.context_tokens={facts.context_tokens} in the recipe"
    kind = "gpt2" if facts.architecture.startswith("GPT2") else "llama"
    raise _beyond(recipe, stated, facts.context_tokens, _consequence({"model_type": kind}))


def context_tokens(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the field of a config.json that states the context, and the context; None if there is no such field.

    A model whose positions are already scaled (llama3, longrope, YaRN) states the scaled context there. YaRN beside an
    unscaled context does not count: Unsloth would replace it beyond the stated one.
    """
    text = _text_part(config)
    if text.get("model_type") in RELATIVE:
        return None
    for field in FIELDS:
        value = text.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return field, value
    return None


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and text else config


def _default(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The context of transformers' default config of this kind; None if the kind is unknown or has none."""
    from transformers import CONFIG_MAPPING

    kind = str(_text_part(config).get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        return None
    return context_tokens(CONFIG_MAPPING[kind]().to_dict())


def _beyond(recipe: Recipe, stated: str, context: int, consequence: str) -> ConfigError:
    wanted, model = recipe.base.max_tokens, recipe.base.model
    return ConfigError(
        f"base.max_tokens: rows of up to {wanted:,} tokens are longer than the {context:,} tokens of context that "
        f"{model} has ({stated}). {consequence} Set base.max_tokens={context} or less, or choose a base with a "
        "longer context."
    )


def _consequence(config: Mapping[str, Any]) -> str:
    """What training beyond the context would do."""
    text = _text_part(config)
    if text.get("model_type") in LEARNED or ("max_position_embeddings" not in text and "n_positions" in text):
        return "It has no positions beyond them."
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    kind = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, Mapping) else None
    if kind == "llama3":
        return "Beyond them its positions were never trained."
    own = f" in place of its own {kind} scaling" if kind not in (None, "default") else ""
    return f"Training would stretch its positions (linear RoPE scaling){own}, and the exported file would not."
