"""Notes on rows: unused fields, values read as text, and unsupported kinds of data, refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from gladstone.artifacts import write_rows
from gladstone.chat.messages import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats import Layout, Notes, find_layout, iter_conversations, recognise
from gladstone.rows import Problems

QA: dict[str, Any] = {"question": "Q", "answer": "A"}
USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def read_file(path: Path, *rows: dict[str, Any], name: str = "auto") -> tuple[list[Conversation], Problems, Notes]:
    write_rows(path, list(rows))
    problems, notes = Problems(), Notes()
    return list(iter_conversations(path, find_layout(path, name), problems, notes)), problems, notes


def test_every_field_that_is_not_used_is_named_once_with_its_rows(tmp_path: Path) -> None:
    rows = [QA | {"id": number, "category": "x" if number % 2 else None} for number in range(6)]
    _, _, notes = read_file(tmp_path / "rows.jsonl", *rows)
    assert notes.lines() == ["not used: id (6 rows), category (3 rows)"]


def test_unused_fields_of_turns_calls_and_parts_are_named_too(tmp_path: Path) -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{}", "strict": True}}
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Q", "cache_control": {"type": "ephemeral"}}],
            "name": "Jo",
        },
        {"role": "assistant", "tool_calls": [call], "refusal": None, "audio": None},
        {"role": "tool", "content": "x"},
        ASSISTANT,
    ]
    _, _, notes = read_file(tmp_path / "rows.jsonl", {"messages": turns, "parallel_tool_calls": False})
    assert set(notes.unused) == {
        "parallel_tool_calls",
        "messages[].name",
        "messages[].content[].cache_control",
        "messages[].tool_calls[].index",
        "messages[].tool_calls[].function.strict",
    }


def test_a_row_that_is_bad_leaves_no_note(tmp_path: Path) -> None:
    _, problems, notes = read_file(tmp_path / "rows.jsonl", QA, QA, {"question": "Q", "answer": [], "more": 1})
    assert (problems.count, notes.lines()) == (1, [])


def test_hostile_names_cost_no_memory_and_steer_no_terminal() -> None:
    notes = Notes()
    for number in range(3000):
        notes.add([f"\x1b[2J{number}" + "x" * 5000], [])
    assert len(notes.unused) == 200
    (line,) = notes.lines()
    assert line.isprintable()
    assert len(line) < 1000
    assert line.endswith("and more than 188 others")


def test_numbers_and_truth_as_labels_are_read_as_their_json_text(tmp_path: Path) -> None:
    rows = [{"instruction": "Rate it.", "input": "x", "output": output} for output in (0, 1, 1.5, True, "2")]
    conversations, _, notes = read_file(tmp_path / "rows.jsonl", *rows)
    assert [row.answer.content for row in conversations] == ["0", "1", "1.5", "true", "2"]
    assert notes.lines() == [
        "3 values of 'output' are numbers, read as text",
        "1 values of 'output' are true or false, read as text",
    ]


def test_with_columns_the_columns_are_named_in_errors_and_the_others_as_unused() -> None:
    layout, notes = Layout("qa", "", {"question": "Frage", "answer": "Klasse"}), Notes()
    row = {"Frage": "Q", "Klasse": 3, "system": "not named", "images": ["x.png"]}
    assert layout.read(row, "x:1", notes).messages == (Message("user", "Q"), Message("assistant", "3"))
    assert notes.lines() == [
        "1 values of 'Klasse' are numbers, read as text",
        "not used: system (1 row), images (1 row)",
    ]
    with pytest.raises(DataError, match="x:1: field 'Frage' is empty"):
        layout.read(row | {"Frage": ""}, "x:1")


def test_a_context_stands_before_the_question_that_it_answers() -> None:
    row = QA | {"context": "The text."}
    assert Layout("qa").read(row, "x:1").messages[0].content == "The text.\n\nQ"
    assert Layout("pair").read({"query": "Q", "response": "A", "context": "T"}, "x:1").messages[0].content == "T\n\nQ"


def test_history_is_the_turns_before_and_may_be_a_tables_json_text() -> None:
    history = [["Q1", "A1"], ["Q2", "<think>R</think>A2"]]
    row = {"instruction": "Q3", "output": "A3", "system": "S", "history": history}
    expected = (
        Message("system", "S"),
        Message("user", "Q1"),
        Message("assistant", "A1"),
        Message("user", "Q2"),
        Message("assistant", "A2", "R"),
        Message("user", "Q3"),
        Message("assistant", "A3"),
    )
    assert Layout("alpaca").read(row, "x:1").messages == expected
    assert Layout("alpaca").read(row | {"history": json.dumps(history)}, "x:1").messages == expected
    for wrong in ([["Q1"]], ["Q1"], [["Q1", ""]], "Q1"):
        with pytest.raises(DataError, match=r"x:1: .*history"):
            Layout("alpaca").read(row | {"history": wrong}, "x:1")


def test_of_a_prompt_of_several_turns_only_the_completion_is_scored() -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT], "tools": [{"name": "f"}]}
    conversation = Layout("prompt").read(row, "x:1")
    assert [turn.train for turn in conversation.messages] == [None, False, None, True]
    assert len(conversation.tools) == 1
    mixed = {"prompt": "Q", "completion": json.dumps([ASSISTANT])}
    assert Layout("prompt").read(mixed, "x:1").messages == (Message("user", "Q"), Message("assistant", "A"))


def test_gemini_calls_functions_and_reads_their_responses() -> None:
    row = {
        "system_instruction": {"parts": [{"text": "S"}]},
        "tools": [{"function_declarations": [{"name": "dose", "parameters": {"type": "OBJECT"}}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "Q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "dose", "args": {"drug": "a"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "dose", "response": {"mg": 5}}}]},
            {"role": "model", "parts": [{"text": "A"}], "weight": 0},
        ],
    }
    conversation = Layout("gemini").read(row, "x:1")
    assert [turn.role for turn in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[2].tool_calls[0].arguments == '{"drug": "a"}'
    assert conversation.messages[3] == Message("tool", '{"mg": 5}', name="dose")
    assert conversation.answer.train is False
    assert json.loads(conversation.tools[0])["function"]["name"] == "dose"
    with pytest.raises(DataError, match="x:1 content 1 part 1: contains 'inlineData'; only text can be trained on"):
        Layout("gemini").read({"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]}, "x:1")


PREFERENCE = {"prompt": "Q", "chosen": "A", "rejected": "B"}
KTO = {"prompt": "Q", "completion": "A", "label": True}


@pytest.mark.parametrize(
    ("row", "says", "option"),
    [
        (PREFERENCE, "preference rows", "--format preference"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "preference rows", "--format preference"),
        ({"messages": [USER, ASSISTANT], "rejected_response": "B"}, "preference rows", "--format preference"),
        (KTO, "KTO", "--format kto"),
        (KTO | {"label": "False"}, "KTO", "--format kto"),
        (KTO | {"label": 0}, "KTO", "--format prompt"),
        ({"messages": [USER, ASSISTANT], "label": False}, "KTO", "--format kto"),
        ({"text": "T", "label": 1}, "text and label", "columns"),
        ({"text": "T", "summary": "S"}, "text and summary", "--format text"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "token ids", "rows of text"),
    ],
)
def test_data_of_another_kind_is_refused_as_what_it_is(
    tmp_path: Path, row: dict[str, Any], says: str, option: str
) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row] * 3)
    with pytest.raises(DataError, match=says) as caught:
        recognise(path)
    assert option in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "row",
    [
        PREFERENCE,
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
        {"prompt": "Q", "chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {}},
        {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]},
        {"messages": [USER, ASSISTANT], "rejected_response": "B"},
    ],
)
def test_of_preference_rows_the_chosen_answer_alone_is_taken(row: dict[str, Any]) -> None:
    notes = Notes()
    conversation = Layout("preference").read(row, "x:1", notes)
    assert conversation.messages == (Message("user", "Q"), Message("assistant", "A"))
    assert all("reject" in name or "non_preferred" in name for name in notes.unused)


def test_bad_answers_are_never_trained_on(tmp_path: Path) -> None:
    rows = [KTO, KTO | {"label": False, "completion": "bad"}, KTO | {"label": "true"}]
    conversations, problems, notes = read_file(tmp_path / "rows.jsonl", *rows, name="kto")
    assert [row.answer.content for row in conversations] == ["A", "A"]
    assert (problems.count, notes.lines()) == (0, ["left out: 1 row, label false: a bad answer"])
    _, problems, _ = read_file(tmp_path / "rows.jsonl", *rows, name="prompt")
    assert problems.count == 1
    assert ":2: label false marks a bad answer (KTO). --format kto" in problems.shown[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": ["x.png"]}, "field 'images': only text can be trained on"),
        ({"audio": {"path": "x"}}, "field 'audio': only text can be trained on"),
        ({"weight": 0}, "weight 0: the row is marked not to be trained on"),
        ({"train": False}, "train False: the row is marked not to be trained on"),
    ],
)
def test_a_row_that_cannot_be_followed_is_refused_by_the_fields_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"x:1: {message}"):
        Layout("qa").read(QA | fields, "x:1")
    assert Layout("qa").read(QA | dict.fromkeys(fields), "x:1").answer.content == "A"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"input": "Q", "output": "A"}, "pair"),
        ({"query": "Q", "response": "A", "system_prompt": "S"}, "pair"),
        ({"question": "Q", "response": "A", "id": 1}, "pair"),
        ({"instruction": "Q", "response": "A"}, "dolly"),
        ({"contents": []}, "gemini"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt"),
    ],
)
def test_auto_tells_these_layouts_apart(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row] * 3)
    assert recognise(path).name == name


def test_two_fields_that_ask_are_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"query": "Q", "input": "I", "response": "A"}])
    with pytest.raises(DataError, match="fits no known format"):
        recognise(path)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("    if x:\n        return x\n", "    if x:\n        return x"),
        ("\n\n  - a\n  - b", "  - a\n  - b"),
        ("\tx", "\tx"),
        (" A\n", " A"),
        ("\r\n A", " A"),
    ],
)
def test_the_indentation_of_an_answer_stays(text: str, read: str) -> None:
    assert Layout("qa").read({"question": "Q", "answer": text}, "x:1").answer.content == read
