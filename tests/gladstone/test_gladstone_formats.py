import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gladstone.artifacts import write_rows
from gladstone.chat import Conversation, Message
from gladstone.errors import ConfigError, DataError
from gladstone.formats import FORMATS, messages, qa, read_conversations

GOOD: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "qa": (
        {
            "question": " Which organ makes insulin? ",
            "answer": "The pancreas.\n",
            "reasoning": "Islets.",
            "system": "S",
        },
        (
            Message("system", "S"),
            Message("user", "Which organ makes insulin?"),
            Message("assistant", "The pancreas.", "Islets."),
        ),
    ),
    "alpaca": (
        {"instruction": "Name the organ.", "input": "It makes insulin.", "output": "The pancreas.", "text": "ignored"},
        (Message("user", "Name the organ.\n\nIt makes insulin."), Message("assistant", "The pancreas.")),
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "Q1"},
                {"role": "assistant", "content": "A1"},
                {"role": "user", "content": "Q2", "reasoning_content": "not a user's"},
                {"role": "assistant", "content": "A2", "reasoning_content": "R2"},
            ]
        },
        (
            Message("system", "S"),
            Message("user", "Q1"),
            Message("assistant", "A1"),
            Message("user", "Q2"),
            Message("assistant", "A2", "R2"),
        ),
    ),
    "reasoning": (
        {"Question": "Q", "Complex_CoT": "Because.", "Response": "A"},
        (Message("user", "Q"), Message("assistant", "A", "Because.")),
    ),
}


def write_row(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_good_row_of_each_format_becomes_its_conversation(name: str, tmp_path: Path) -> None:
    row, turns = GOOD[name]
    path = write_row(tmp_path / "rows.jsonl", row)
    assert read_conversations(path, name) == [Conversation(turns, f"{path}:1")]


@pytest.mark.parametrize("given_input", ["", "  ", None])
def test_an_alpaca_row_without_input_asks_the_instruction_alone(given_input: str | None, tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"instruction": "Go.", "input": given_input, "output": "Gone."})
    assert read_conversations(path, "alpaca")[0].prompt == (Message("user", "Go."),)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("qa", {"question": "Q", "reply": "A"}, "no field 'answer'; the row has 'question', 'reply'."),
        ("qa", {}, "no field 'question'; the row has no fields."),
        ("qa", {"question": "Q", "answer": " \n"}, "field 'answer' is empty."),
        ("qa", {"question": "Q", "answer": None}, "field 'answer' is empty."),
        ("qa", {"question": ["Q"], "answer": "A"}, "field 'question' is list, expected text."),
        ("qa", {"question": "Q", "answer": "A", "system": 5}, "field 'system' is int, expected text."),
        ("qa", {"question": "Q", "answer": "A", "reasoning": {}}, "field 'reasoning' is dict, expected text."),
        ("alpaca", {"input": "I", "output": "O"}, "no field 'instruction'; the row has 'input', 'output'."),
        ("alpaca", {"instruction": "I", "input": 1, "output": "O"}, "field 'input' is int, expected text."),
        ("alpaca", {"instruction": "I", "input": ""}, "no field 'output'; the row has 'instruction', 'input'."),
        (
            "reasoning",
            {"Question": "Q", "Response": "A"},
            "no field 'Complex_CoT'; the row has 'Question', 'Response'.",
        ),
        (
            "reasoning",
            {"question": "Q", "answer": "A"},
            "no field 'Question'; the row has 'question', 'answer'.",
        ),
        ("messages", {"conversations": []}, "no field 'messages'; the row has 'conversations'."),
        ("messages", {}, "no field 'messages'; the row has no fields."),
        ("messages", {"messages": []}, "field 'messages' must be a non-empty list."),
        ("messages", {"messages": {"role": "user"}}, "field 'messages' must be a non-empty list."),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_its_keys(
    name: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_row(tmp_path / "rows.jsonl", GOOD[name][0], row)
    with pytest.raises(DataError) as caught:
        read_conversations(path, name)
    assert str(caught.value) == f"{path} does not fit the format {name!r}: {path}:2: {message}"


USER, ASSISTANT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["hello"], " message 1: expected an object with role and content, found str."),
        ([USER, {"content": "x"}], " message 2: no field 'role'; the row has 'content'."),
        ([USER, {"role": "assistant"}], " message 2: no field 'content'; the row has 'role'."),
        ([{"role": "human", "content": "x"}], " message 1: role 'human', expected one of system, user, assistant."),
        ([USER, {"role": "assistant", "content": [1]}], " message 2: field 'content' is list, expected text."),
        (
            [USER, {"role": "assistant", "content": "x", "reasoning_content": 1}],
            " message 2: field 'reasoning_content' is int, expected text.",
        ),
    ],
)
def test_a_bad_turn_is_refused_with_its_number(turns: list[Any], message: str, tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"messages": turns})
    with pytest.raises(DataError) as caught:
        read_conversations(path, "messages")
    assert str(caught.value) == f"{path} does not fit the format 'messages': {path}:1{message}"


@pytest.mark.parametrize(
    "turns",
    [
        [USER],
        [SYSTEM],
        [ASSISTANT],
        [USER, ASSISTANT, USER],
        [USER, USER, ASSISTANT],
        [USER, SYSTEM, ASSISTANT],
        [SYSTEM, SYSTEM, USER, ASSISTANT],
        [ASSISTANT, USER, ASSISTANT],
    ],
)
def test_turns_out_of_order_are_refused_with_their_roles(turns: list[Any], tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"messages": turns})
    roles = ", ".join(turn["role"] for turn in turns)
    with pytest.raises(DataError, match=f"rows.jsonl:1: roles are {roles}; expected user and assistant in turn"):
        read_conversations(path, "messages")


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("qa", '{"question": "Q", "answer": "\\ud800"}', "answer"),
        ("qa", '{"question": "Q", "answer": "A", "reasoning": "x\\udfff"}', "reasoning"),
        ("alpaca", '{"instruction": "Q", "input": "\\ud83d ", "output": "A"}', "input"),
        ("reasoning", '{"Question": "\\udc00", "Complex_CoT": "C", "Response": "A"}', "Question"),
        ("messages", '{"messages": [{"role": "user", "content": "\\ude00\\ud83d"}]}', "content"),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_line(name: str, row: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{row}\n")
    with pytest.raises(DataError, match=rf"rows.jsonl:2.*: field '{field}' holds half of a surrogate pair"):
        read_conversations(path, name)


def test_a_whole_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "\\ud83d\\ude00", "answer": "A"}')
    assert read_conversations(path, "qa")[0].prompt[0].content == "😀"


def test_ten_bad_rows_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    bad, good = {"question": "Q"}, {"question": "Q", "answer": "A"}
    path = write_row(tmp_path / "rows.jsonl", *([bad, good] * 13))
    with pytest.raises(DataError) as caught:
        read_conversations(path, "qa")
    first, *listed, last = str(caught.value).splitlines()
    assert first == f"{path} does not fit the format 'qa' (13 problems):"
    assert listed == [f"  - {path}:{line}: no field 'answer'; the row has 'question'." for line in range(1, 21, 2)]
    assert last == "  … and 3 more"


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data format 'chatml'; known: qa, alpaca, messages, reasoning"):
        read_conversations(tmp_path / "rows.jsonl", "chatml")


texts = st.text(min_size=1).map(str.strip).filter(bool)
maybe = st.none() | texts
answers = st.builds(Message, st.just("assistant"), texts, maybe)
questions = st.builds(Message, st.just("user"), texts)
openings = st.lists(st.builds(Message, st.just("system"), texts), max_size=1)


def join(opening: list[Message], talk: list[tuple[Message, Message]]) -> Conversation:
    return Conversation((*opening, *(turn for pair in talk for turn in pair)), "row:1")


single_turns = st.builds(join, openings, st.lists(st.tuples(questions, answers), min_size=1, max_size=1))
conversations = st.builds(join, openings, st.lists(st.tuples(questions, answers), min_size=1, max_size=4))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(conversation=single_turns)
def test_a_single_turn_written_as_qa_reads_back_as_itself(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [qa.write(conversation)])
    assert read_conversations(path, "qa")[0].messages == conversation.messages


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(conversation=conversations)
def test_a_conversation_written_as_messages_reads_back_as_itself(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [messages.write(conversation)])
    assert read_conversations(path, "messages")[0].messages == conversation.messages


def test_qa_refuses_to_write_more_than_one_question() -> None:
    user, assistant = Message("user", "Q"), Message("assistant", "A")
    with pytest.raises(ValueError, match="is not one question and one answer"):
        qa.write(Conversation((user, assistant, user, assistant), "row:1"))


def test_a_conversation_knows_its_prompt_and_its_answer() -> None:
    turns = GOOD["messages"][1]
    conversation = Conversation(turns, "row:1")
    assert conversation.prompt == turns[:-1]
    assert conversation.answer == Message("assistant", "A2", "R2")
