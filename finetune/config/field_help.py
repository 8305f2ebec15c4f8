"""The fields of a recipe with their help and defaults, as `--help` lists them."""

from typing import Any, TypeGuard, get_args

from finetune.config.schema import HubFacts, Recipe
from gladstone.config import Config
from gladstone.strict_json import json_text


def field_help(section: type[Config] = Recipe, prefix: str = "") -> list[tuple[str, str]]:
    """Return each field's name, as --set takes it, with its help and default; names of list items end with []."""
    rows: list[tuple[str, str]] = []
    for name, field in section.model_fields.items():
        listed = next((argument for argument in get_args(field.annotation) if _is_section(argument)), None)
        inner = field.annotation if _is_section(field.annotation) else None
        if inner is HubFacts or listed is HubFacts:
            continue
        if inner is not None:
            rows += field_help(inner, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() or isinstance(field.default, tuple) else f"  [{json_text(field.default)}]"
        choices = " | ".join(choice for choice in get_args(field.annotation) if isinstance(choice, str))
        rows.append((f"{prefix}{name}", f"{field.description}{f' ({choices})' if choices else ''}{default}"))
        if listed is not None and name == "sources":
            rows += field_help(listed, f"{prefix}{name}[].")
    return rows


def _is_section(annotation: Any) -> TypeGuard[type[Config]]:
    return isinstance(annotation, type) and issubclass(annotation, Config)
