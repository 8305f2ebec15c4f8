from typing import Any

import pytest

from runtime.grammars.wrappers import unwrapped

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
NAMED = {"name": "answer", "strict": True, "schema": SCHEMA}


@pytest.mark.parametrize(
    "wrapped",
    [
        SCHEMA,
        NAMED,
        {"type": "json_schema", "json_schema": NAMED},
        {"type": "json_schema", **NAMED},
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}},
        {"name": "f", "input_schema": SCHEMA},
    ],
)
def test_a_schema_is_found_inside_its_wrapper(wrapped: dict[str, Any]) -> None:
    assert unwrapped(wrapped) == SCHEMA


@pytest.mark.parametrize(
    "schema",
    [
        True,
        [],
        {},
        {"type": "object", "schema": {}},  # unknown keywords of a schema, which are refused by name
        {"properties": {"schema": {"type": "string"}}},
        {"name": "a", "schema": {}, "$defs": {}},
        {"schema": {}, "parameters": {}},
    ],
)
def test_what_is_no_wrapper_stays_as_it_is(schema: Any) -> None:
    assert unwrapped(schema) == schema


def test_a_response_format_without_a_schema_asks_for_an_object() -> None:
    assert unwrapped({"response_format": {"type": "json_object"}}) == {"type": "object"}
