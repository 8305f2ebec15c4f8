"""Turns of chat layouts: roles, flags, tool calls, parts, order; and a round trip through writing."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gladstone.chat.messages import Conversation, Message, ToolCall
from gladstone.errors import DataError
from gladstone.formats import Layout, Notes, prepared

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
FUNCTION = {"name": "dose", "description": "usual dose", "parameters": {"type": "object", "properties": {}}}
DEFINITION = {"type": "function", "function": FUNCTION}
RESULT = {"role": "tool", "tool_call_id": "c0", "content": '{"dose": "5 mg"}'}
CALL = ToolCall("dose", '{"drug": "aspirin"}', "c0")


def read(name: str, row: dict[str, Any], notes: Notes | None = None) -> Conversation:
    return Layout(name).read(row, "rows.jsonl:7", notes)


def talk(*turns: Any, **fields: Any) -> Conversation:
    return read("messages", {"messages": list(turns), **fields})


def calling(**fields: Any) -> dict[str, Any]:
    call = {"id": "c0", "type": "function", "function": {"name": "dose", "arguments": '{"drug": "aspirin"}'}}
    return {"role": "assistant", "tool_calls": [call], **fields}


@pytest.mark.parametrize(
    ("flag", "train"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0}, True),
        ({"weight": None}, None),
        ({"train": False}, False),
        ({"train": True}, True),
        ({"training": False}, False),
        ({"loss": True}, True),
        ({"mask": True}, False),
        ({"masked": False}, True),
        ({"weight": 0, "train": False}, False),
    ],
)
@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_a_turn_says_whether_it_is_scored(name: str, flag: dict[str, Any], train: bool | None) -> None:
    field = {"messages": "messages", "sharegpt": "conversations"}[name]
    conversation = read(name, {field: [USER, ASSISTANT | flag, USER, ASSISTANT]})
    assert [message.train for message in conversation.messages] == [None, train, None, None]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (ASSISTANT | {"weight": 0.5}, "message 2: weight is 0.5, expected 0 or 1"),
        (ASSISTANT | {"weight": "x"}, "message 2: weight is 'x', expected 0 or 1"),
        (ASSISTANT | {"train": 2}, "message 2: train is 2, expected 0 or 1"),
        (ASSISTANT | {"train": [True]}, "message 2: train is an array"),
        (ASSISTANT | {"weight": 1, "train": False}, "weight and train contradict"),
        (ASSISTANT | {"train_detail": [{"begin_offset": 0}]}, "train_detail: a turn is scored as a whole"),
    ],
)
def test_a_flag_that_is_none_is_refused_by_its_name(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        talk(USER, turn)


def test_only_the_assistants_turns_can_ask_to_be_scored() -> None:
    assert talk(USER | {"train": False}, ASSISTANT).messages[0] == Message("user", "Q")
    with pytest.raises(DataError, match="message 1: weight marks this turn to be scored"):
        talk(USER | {"weight": 1}, ASSISTANT)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_calls_and_results_of_tools_are_read(content: dict[str, Any]) -> None:
    conversation = talk(USER, calling(**content), RESULT, ASSISTANT, tools=[DEFINITION])
    assert conversation.messages == (
        Message("user", "Q"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", '{"dose": "5 mg"}', tool_call_id="c0"),
        Message("assistant", "A"),
    )
    assert [json.loads(tool) for tool in conversation.tools] == [DEFINITION]


@pytest.mark.parametrize(
    "tools",
    [
        [DEFINITION],
        [FUNCTION],
        json.dumps([FUNCTION]),
        [json.dumps(DEFINITION)],
        FUNCTION,
        [{**FUNCTION, "type": "function"}],
    ],
)
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_read_however_they_are_framed(tools: Any, name: str) -> None:
    assert [json.loads(tool) for tool in talk(USER, ASSISTANT, **{name: tools}).tools] == [DEFINITION]


@pytest.mark.parametrize("tools", [None, [], "", "[]", {}])
def test_no_tools_are_none(tools: Any) -> None:
    assert talk(USER, ASSISTANT, tools=tools).tools == ()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("dose", "field 'tools' is not JSON"),
        (5, "field 'tools' is a number, expected a list of objects"),
        ([5], "tool 1 is a number"),
        ([{"description": "no name"}], "tool 1 has no function with a name"),
        ([{"type": "code_interpreter"}], "tool 1 has the type 'code_interpreter'"),
        ([{"type": "function", "function": {"name": "x", "parameters": "{"}}], "tool 1's parameters is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_tools_that_cannot_be_read_are_refused(tools: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:7: .*{message}"):
        talk(USER, ASSISTANT, tools=tools)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"drug": "ä"}, '{"drug": "ä"}'), ('{ "a":1 }', '{ "a":1 }'), ("", "{}"), (None, "{}"), ({}, "{}")],
)
def test_arguments_are_an_object_or_its_text(arguments: Any, text: str) -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert talk(USER, turn).answer.tool_calls == (ToolCall("f", text),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "f", "arguments": "drug"}, "message 2 call 1: field 'arguments' is not JSON"),
        ({"name": "f", "arguments": '"text"'}, "field 'arguments' is a text, expected a JSON object"),
        ({"name": "f", "arguments": '{"dose": NaN}'}, "NaN is not a JSON value"),
        ({"arguments": {}}, "call 1: no field 'name'"),
        ({"type": "custom", "name": "f"}, "call 1: type 'custom'"),
        (7, "call 1: expected an object with name and arguments, found a number"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        talk(USER, {"role": "assistant", "tool_calls": [call]})


def test_the_older_function_call_is_a_call_and_its_function_turn_a_result() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "dose", "arguments": "{}"}}
    result = {"role": "function", "name": "dose", "content": "5 mg"}
    assert talk(USER, call, result, ASSISTANT).messages[1:3] == (
        Message("assistant", "", tool_calls=(ToolCall("dose", "{}"),)),
        Message("tool", "5 mg", name="dose"),
    )
    with pytest.raises(DataError, match="calls are given twice"):
        talk(USER, calling(function_call={"name": "dose", "arguments": "{}"}))


def test_sharegpt_calls_in_a_turn_of_their_own_and_observes_the_result() -> None:
    turns = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "dose", "arguments": {"drug": "aspirin"}}'},
        {"from": "observation", "value": "5 mg"},
        {"from": "gpt", "value": "A"},
    ]
    conversation = read("sharegpt", {"conversations": turns, "tools": json.dumps([FUNCTION]), "system": "S"})
    assert conversation.messages == (
        Message("system", "S"),
        Message("user", "Q"),
        Message("assistant", "", tool_calls=(ToolCall("dose", '{"drug": "aspirin"}'),)),
        Message("tool", "5 mg"),
        Message("assistant", "A"),
    )
    assert len(conversation.tools) == 1
    turns[1]["value"] = "dose(aspirin)"
    with pytest.raises(DataError, match=r"rows\.jsonl:7 turn 2: the function call is not JSON"):
        read("sharegpt", {"conversations": turns})


def test_roles_have_many_names_and_turns_two_spellings() -> None:
    turns = [{"role": "Developer", "content": "S"}, {"from": "human", "value": "Q"}, {"role": "model", "content": "A"}]
    expected = (Message("system", "S"), Message("user", "Q"), Message("assistant", "A"))
    assert talk(*turns).messages == expected
    assert read("sharegpt", {"conversations": turns}).messages == expected


def test_a_system_turn_without_text_is_none_and_two_that_differ_are_refused() -> None:
    assert talk({"role": "system", "content": ""}, USER, ASSISTANT).messages[0].role == "user"
    assert talk({"role": "system", "content": "S"}, USER, ASSISTANT, system="S").messages[0] == Message("system", "S")
    with pytest.raises(DataError, match="two different system texts"):
        talk({"role": "system", "content": "S"}, USER, ASSISTANT, system="T")


def test_parts_of_text_are_one_text_and_others_are_refused_by_their_type() -> None:
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?", "image": None}]
    assert talk({"role": "user", "content": parts}, ASSISTANT).messages[0].content == "Why so?"
    for kind in ("image_url", "input_audio", "file"):
        with pytest.raises(DataError, match=f"message 1 part 2: has the type '{kind}'; only text can be trained on"):
            talk({"role": "user", "content": [parts[0], {"type": kind, kind: {"url": "x"}}]}, ASSISTANT)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(field: str) -> None:
    assert talk(USER, ASSISTANT | {field: "R"}).answer == Message("assistant", "A", "R")
    with pytest.raises(DataError, match="reasoning is given twice"):
        talk(USER, ASSISTANT | {"reasoning_content": "R1", "reasoning": "R2", "thinking": "R1"})


RESULTS = {"role": "tool", "content": {"dose": "5 mg"}}


@pytest.mark.parametrize(
    ("turns", "advice"),
    [
        ([USER, ASSISTANT, USER], "Leave out the turns after the assistant's last"),
        ([USER, calling(), RESULT], "Leave out the turns after the assistant's last"),
        ([ASSISTANT, USER, ASSISTANT], "Leave out the assistant's first turn"),
        ([USER, USER, ASSISTANT], "Join consecutive turns of the user"),
        ([USER, ASSISTANT, ASSISTANT], "Join consecutive turns of the assistant"),
        ([USER, RESULT, ASSISTANT], "A turn of the tool cannot follow one of the user"),
        ([USER, calling(), RESULT, USER, ASSISTANT], "A turn of the user cannot follow one of the tool"),
        ([USER, {"role": "system", "content": "S"}, ASSISTANT], "Put the one system message first"),
    ],
)
def test_turns_out_of_order_are_refused_with_what_to_do(turns: list[Any], advice: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:7: roles are .*{advice}"):
        talk(*turns)


def test_several_calls_results_and_questions_are_in_order() -> None:
    turns = [USER, calling(), RESULT, RESULTS, calling(), RESULT, ASSISTANT, USER, ASSISTANT]
    notes = Notes()
    conversation = read("messages", {"messages": turns}, notes)
    assert [turn.role for turn in conversation.messages] == [turn["role"] for turn in turns]
    assert conversation.messages[3].content == '{"dose": "5 mg"}'
    assert notes.lines() == ["1 values of 'messages[].content' are objects, read as text"]


texts = st.text(min_size=1).filter(lambda text: text.strip())
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=3)
as_json = objects.map(lambda value: json.dumps(value, ensure_ascii=False))
calls = st.builds(ToolCall, names, as_json, st.none() | names)
flags = st.none() | st.booleans()
maybe = st.none() | texts
questions = st.builds(Message, st.just("user"), texts)
answers = st.builds(Message, st.just("assistant"), texts, maybe, flags)
callers = st.builds(
    Message, st.just("assistant"), st.just("") | texts, maybe, flags, st.lists(calls, min_size=1, max_size=2).map(tuple)
)
results = st.builds(
    Message, st.just("tool"), st.just("") | texts, tool_call_id=st.none() | names, name=st.none() | names
)
exchanges = st.tuples(
    questions,
    st.lists(st.tuples(callers, st.lists(results, min_size=1, max_size=2)), max_size=2),
    answers,
).map(lambda parts: (parts[0], *(turn for caller, found in parts[1] for turn in (caller, *found)), parts[2]))
definitions = st.builds(
    lambda name, parameters: json.dumps(
        {"type": "function", "function": {"name": name, "parameters": parameters}}, ensure_ascii=False
    ),
    names,
    objects,
)
conversations = st.builds(
    lambda system, parts, tools: Conversation((*system, *(turn for part in parts for turn in part)), "a:1", tools),
    st.lists(st.builds(Message, st.just("system"), texts), max_size=1),
    st.lists(exchanges, min_size=1, max_size=3),
    st.lists(definitions, max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(conversation=conversations)
def test_whatever_is_prepared_comes_back_equal(conversation: Conversation) -> None:
    notes = Notes()
    row = json.loads(json.dumps(prepared.write(conversation), ensure_ascii=False))
    assert read("prepared", row, notes) == conversation
    assert notes.lines() == []
