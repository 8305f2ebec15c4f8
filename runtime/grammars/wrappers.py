"""Unwraps a JSON schema from OpenAI's response format or from the definition of a tool."""

from typing import Any

_WRAPPERS = ("response_format", "json_schema", "schema", "function", "parameters", "input_schema")
_BESIDE = {"type", "name", "description", "strict"}  # other keys of a wrapper
_TYPES = (None, "json_schema", "function")
_DEEPEST = 3  # a response format, its schema's name, the schema


def unwrapped(schema: Any) -> Any:
    """The schema inside known wrappers; any other value is returned unchanged."""
    for _ in range(_DEEPEST):
        if schema == {"type": "json_object"}:
            return {"type": "object"}
        if not isinstance(schema, dict) or schema.get("type") not in _TYPES:
            return schema
        inside = [name for name in _WRAPPERS if isinstance(schema.get(name), dict | bool)]
        if len(inside) != 1 or not schema.keys() <= {*inside, *_BESIDE}:
            return schema
        schema = schema[inside[0]]
    return schema
