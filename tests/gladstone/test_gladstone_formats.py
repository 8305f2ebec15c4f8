import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gladstone.artifacts import write_rows
from gladstone.chat.messages import Conversation, Message
from gladstone.errors import ConfigError, DataError
from gladstone.formats import (
    FORMATS,
    IDENTIFYING_FIELDS,
    Layout,
    find_layout,
    messages,
    prepared,
    qa,
    read_conversations,
    recognise,
)

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
            Message("user", " Which organ makes insulin?"),
            Message("assistant", "The pancreas.", "Islets."),
        ),
    ),
    "text": ({"text": " Bile is made in the liver."}, (Message("assistant", " Bile is made in the liver."),)),
    "rendered": (
        {"id": 7, "text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"},
        (Message("user", "Q"), Message("assistant", "A")),
    ),
    "prepared": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        (Message("user", "Q"), Message("assistant", "A")),
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
    "sharegpt": (
        {
            "system": "S",
            "conversations": [
                {"from": "human", "value": "Q1"},
                {"from": "gpt", "value": "<think>\nR1\n</think>\n\nA1"},
                {"from": "user", "value": "Q2"},
                {"from": "assistant", "value": "A2"},
            ],
        },
        (
            Message("system", "S"),
            Message("user", "Q1"),
            Message("assistant", "A1", "R1"),
            Message("user", "Q2"),
            Message("assistant", "A2"),
        ),
    ),
    "prompt": (
        {"prompt": "Q", "completion": " A"},
        (Message("user", "Q"), Message("assistant", " A")),
    ),
    "dolly": (
        {
            "instruction": "Name the organ.",
            "context": "It makes insulin.",
            "response": "The pancreas.",
            "category": "qa",
        },
        (Message("user", "Name the organ.\n\nIt makes insulin."), Message("assistant", "The pancreas.")),
    ),
    "pair": (
        {"system_prompt": "S", "query": "Q", "response": "A", "id": 1},
        (Message("system", "S"), Message("user", "Q"), Message("assistant", "A")),
    ),
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "S"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Q1, "}, {"text": "whole"}]},
                {"role": "model", "parts": [{"text": "R1", "thought": True}, {"text": "A1"}]},
                {"parts": [{"text": "Q2"}]},
                {"role": "model", "parts": ["A2"]},
            ],
        },
        (
            Message("system", "S"),
            Message("user", "Q1, whole"),
            Message("assistant", "A1", "R1"),
            Message("user", "Q2"),
            Message("assistant", "A2"),
        ),
    ),
    "preference": (
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        (Message("user", "Q"), Message("assistant", "A")),
    ),
    "kto": (
        {"prompt": "Q", "completion": "A", "label": True},
        (Message("user", "Q"), Message("assistant", "A")),
    ),
    "reasoning": (
        {"Question": "Q", "Complex_CoT": "Because.", "Response": "A"},
        (Message("user", "Q"), Message("assistant", "A", "Because.")),
    ),
    "pubmedqa": (
        {"QUESTION": "Q?", "CONTEXTS": ["C1", " ", "C2"], "LONG_ANSWER": "It is.", "final_decision": "yes"},
        (Message("user", "C1\n\nC2\n\nQ?"), Message("assistant", "Yes. It is.")),
    ),
    "pubmedqa-closed": (
        {"QUESTION": "Q?", "CONTEXTS": ["C1"], "LONG_ANSWER": "It is."},
        (Message("user", "Q?"), Message("assistant", "It is.")),
    ),
    "medquad": (
        {"Question": "Q", "Answer": "A", "qtype": "use", "Focus": None},
        (Message("user", "Q"), Message("assistant", "A")),
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
        ("qa", {"question": ["Q"], "answer": "A"}, "field 'question' is an array, expected text."),
        ("qa", {"question": "Q", "answer": {}}, "field 'answer' is an object, expected text."),
        ("qa", {"question": "Q", "answer": "A", "system": 5}, "field 'system' is a number, expected text."),
        ("qa", {"question": "Q", "answer": "A", "reasoning": {}}, "field 'reasoning' is an object, expected text."),
        ("alpaca", {"input": "I", "output": "O"}, "no field 'instruction'; the row has 'input', 'output'."),
        ("alpaca", {"instruction": "I", "input": [], "output": "O"}, "field 'input' is an array, expected text."),
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
    assert str(caught.value) == f"{path}, read as {name!r}: {path}:2: {message}"


USER, ASSISTANT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["hello"], " message 1: expected an object with role and content, found a text."),
        ([USER, {"content": "x"}], " message 2: no field 'role'; the row has 'content'."),
        ([USER, {"role": "assistant"}], " message 2: no field 'content'; the row has 'role'."),
        (
            [{"role": "doctor", "content": "x"}],
            " message 1: role 'doctor', expected one of system, developer, user, assistant, tool, human, gpt, "
            "function_call, observation.",
        ),
        ([USER, {"role": "assistant", "content": {}}], " message 2: field 'content' is an object, expected text."),
        (
            [USER, {"role": "assistant", "content": [1]}],
            " message 2 part 1: expected an object with type and text, found a number.",
        ),
        (
            [USER, {"role": "assistant", "content": "x", "reasoning_content": 1}],
            " message 2: field 'reasoning_content' is a number, expected text.",
        ),
    ],
)
def test_a_bad_turn_is_refused_with_its_number(turns: list[Any], message: str, tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"messages": turns})
    with pytest.raises(DataError) as caught:
        read_conversations(path, "messages")
    assert str(caught.value) == f"{path}, read as 'messages': {path}:1{message}"


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
    with pytest.raises(DataError, match=f"rows.jsonl:1: roles are {roles};"):
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
    with pytest.raises(DataError, match=rf"rows.jsonl:2.*: field '{field}' contains half of a surrogate pair"):
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
    assert first == f"{path}, read as 'qa' (13 problems):"
    assert listed == [f"  - {path}:{line}: no field 'answer'; the row has 'question'." for line in range(1, 21, 2)]
    assert last == "  … and 3 more"


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data format 'chatml'; known: auto, qa, alpaca, messages"):
        read_conversations(tmp_path / "rows.jsonl", "chatml")


texts = st.text(min_size=1).map(str.strip).filter(bool)
maybe = st.none() | texts
# the text of an answer that opens a thought is read as one
answers = st.builds(Message, st.just("assistant"), texts.filter(lambda text: "<think>" not in text), maybe)
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


@pytest.mark.parametrize("name", IDENTIFYING_FIELDS)
def test_auto_recognises_each_format_and_says_why(name: str, tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", *[GOOD[name][0]] * 3)
    layout = recognise(path)
    assert (layout.name, layout.why) == (name, f"the first 3 rows have {', '.join(IDENTIFYING_FIELDS[name])}")
    assert read_conversations(path, "auto") == read_conversations(path, name)


def test_auto_goes_by_most_of_the_rows_and_the_others_are_reported(tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", *[GOOD["qa"][0]] * 3, {"question": "Q"})
    assert recognise(path).why == "3 of the first 4 rows have question, answer"
    with pytest.raises(DataError, match=r"rows\.jsonl:4: no field 'answer'"):
        read_conversations(path, "auto")


def test_auto_refuses_when_two_formats_fit(tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {**GOOD["qa"][0], **GOOD["reasoning"][0]})
    with pytest.raises(DataError, match=r"fits the formats qa and reasoning.*--format"):
        read_conversations(path, "auto")


def test_columns_name_the_fields_of_any_layout(tmp_path: Path) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"Frage": "Q", "Antwort": "A", "Gedanken": "R", "answer": "not this"})
    layout = find_layout(path, "auto", {"question": "Frage", "answer": "Antwort", "reasoning": "Gedanken"})
    assert layout.read({"Frage": "Q", "Antwort": "A", "Gedanken": "R", "answer": "no"}, "x:1").answer == Message(
        "assistant", "A", "R"
    )
    with pytest.raises(DataError, match=r"x:1: no column 'Frage' \(of columns\); the row has 'answer'"):
        layout.read({"answer": "A"}, "x:1")


@pytest.mark.parametrize(
    ("columns", "format_name", "message"),
    [
        ({"question": "a", "answer": "b", "title": "c"}, "auto", "unknown name 'title'"),
        ({"question": "a"}, "auto", "'answer' is missing"),
        ({"question": "a", "answer": "b"}, "alpaca", "leave out format: alpaca"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(
    tmp_path: Path, columns: dict[str, str], format_name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_layout(tmp_path / "rows.jsonl", format_name, columns)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nR\n</think>\n\nA", "R", "A"),
        ("<think></think>A", None, "A"),
        ("<think>R</think>A </think> B", "R", "A </think> B"),
        ("A <think>R</think>", None, "A <think>R</think>"),
    ],
)
def test_reasoning_that_opens_the_answer_becomes_its_field(
    tmp_path: Path, text: str, reasoning: str | None, answer: str
) -> None:
    path = write_row(tmp_path / "rows.jsonl", {"question": "Q", "answer": text})
    assert read_conversations(path, "qa")[0].answer == Message("assistant", answer, reasoning)


def test_plain_text_is_one_turn_that_answers_nothing() -> None:
    row = Layout("text").read({"text": " Bile is made in the liver. "}, "x:1")
    assert row.messages == (Message("assistant", " Bile is made in the liver."),)
    assert row.is_text
    assert row.prompt == ()
    with pytest.raises(DataError, match="x:1: field 'text' is empty"):
        Layout("text").read({"text": " "}, "x:1")


@pytest.mark.parametrize(
    "row",
    [
        Conversation((Message("assistant", "Bile is made in the liver."),), "a.jsonl:7"),
        Conversation(
            (Message("system", "Be short."), Message("user", "Why?"), Message("assistant", "So.", "Because.")),
            "a.jsonl:8",
        ),
    ],
)
def test_prepared_rows_come_back_equal_and_keep_their_source(row: Conversation) -> None:
    assert Layout("prepared").read(prepared.write(row), "train.jsonl:1") == row


def test_pubmedqa_is_read_in_the_layout_of_the_hub_too() -> None:
    original = {
        "QUESTION": "Does it?",
        "CONTEXTS": ["One.", "Two."],
        "LONG_ANSWER": "It does.",
        "final_decision": "yes",
    }
    hub = {
        "pubid": 1,
        "question": "Does it?",
        "context": {"contexts": ["One.", "Two."], "labels": ["A", "B"], "meshes": []},
        "long_answer": "It does.",
        "final_decision": "yes",
    }
    for name in ("pubmedqa", "pubmedqa-closed"):
        assert Layout(name).read(hub, "x:1") == Layout(name).read(original, "x:1")
