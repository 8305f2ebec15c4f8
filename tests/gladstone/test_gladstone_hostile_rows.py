"""Wrong values in every field of every layout give a conversation or one readable error, and nothing else."""

import copy
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from gladstone.chat.messages import Conversation
from gladstone.errors import DataError
from gladstone.formats import FORMATS, Layout, LeftOutError, Notes, prepared
from tests.gladstone.test_gladstone_formats import GOOD

FUNCTION = {"name": "f", "parameters": {}}
CALL = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
RICH: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}], "weight": 0, "name": "n"},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "train": True, "reasoning": "R"},
                {"role": "tool", "content": "x", "tool_call_id": "c", "name": "f"},
                {"role": "assistant", "content": "A", "weight": 1},
            ],
            "weight": 1,
            "label": True,
            "images": None,
            "system": None,
        }
    ],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "x"},
                {"from": "gpt", "value": "A", "weight": 1},
            ],
            "system": "S",
            "tools": "[]",
        }
    ],
    "alpaca": [
        {"instruction": "Q", "input": "I", "output": "A", "system": "S", "history": [["Q", "A"]], "tools": "[]"}
    ],
    "prompt": [{"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}],
    "gemini": [
        {
            "systemInstruction": {"parts": [{"text": "S"}]},
            "tools": [{"functionDeclarations": [{"name": "f"}]}],
            "contents": [
                {"role": "user", "parts": [{"text": "Q"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
                {"role": "model", "parts": [{"text": "A"}]},
            ],
        }
    ],
    "preference": [
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": []},
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {}},
        {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]},
    ],
    "kto": [{"messages": [USER, ASSISTANT], "label": True}],
}


def nested(levels: int, *, objects: bool) -> Any:
    value: Any = {} if objects else []
    for _ in range(levels):
        value = {"a": value} if objects else [value]
    return value


WRONG = [
    None, "", 0, 1, -1, 1.5, float("nan"), True, False, [], {}, [[]], [{}], [None], [1, 2], {"a": 1}, "[", "[{", "[]",
    "{}", '[{"role": "user", "content": "x"}]', "\ud800", "\0", "x" * 100_000, b"x", 10**400, "[" * 20_000, object(),
    {"type": "text"}, [{"type": "text", "text": 5}], {"type": []}, {"function": 5}, {"name": 5}, {"\ud800": 1},
    nested(900, objects=False), nested(900, objects=True),
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inner = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in inner:
        yield from places(value[key], (*path, key))


def with_value(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.copy(row)
    changed[path[0]] = with_value(row[path[0]], path[1:], value)
    return changed


def reading(layout: Layout, row: Any, notes: Notes) -> Conversation | str | None:
    """The conversation, the message of its error, or None for a row that is left out."""
    try:
        return layout.read(row, "x:1", notes)
    except DataError as error:
        return str(error)
    except LeftOutError:
        return None


@pytest.mark.parametrize("name", FORMATS)
def test_wrong_values_anywhere_are_one_readable_error_or_come_back_equal(name: str) -> None:
    kinds = set()
    for row in (GOOD[name][0], *RICH.get(name, [])):
        for path, value in product(places(row), WRONG):
            notes = Notes()
            read = reading(Layout(name), with_value(row, path, value), notes)
            kinds.add(type(read))
            if isinstance(read, str):
                assert read.startswith("x:1"), (path, value)
                assert read.isprintable(), (path, value)
                assert len(read) < 900, (path, value)
            elif read is not None:
                assert all(line.isprintable() and len(line) < 1500 for line in notes.lines())
                written = json.loads(json.dumps(prepared.write(read), ensure_ascii=False))
                assert Layout("prepared").read(written, "y:1") == read, (path, value)
    assert kinds >= {str, Conversation}
