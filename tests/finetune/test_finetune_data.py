import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import divide, drop_copies, load_split, question_key, write_split
from finetune.recipe import DataSection, Source
from gladstone.chat import Conversation, Message
from gladstone.errors import DataError
from gladstone.formats import read_conversations
from tests.tiny_models import medical_rows, write_rows_file

SECTION = DataSection(sources=(Source(path="unused.jsonl"),))


def conversation(question: str, answer: str, line: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), f"rows.jsonl:{line}")


def section(path: Path, **fields: float) -> DataSection:
    return DataSection.model_validate({"sources": [{"path": str(path)}], **fields})


questions = st.text(alphabet="abcABC ?é1", min_size=1, max_size=6)
conversations = st.lists(
    st.builds(conversation, questions, st.sampled_from(["yes", "no", "perhaps"])), min_size=1, max_size=60
)


@given(conversations, st.integers(0, 1000))
def test_no_question_is_in_two_sets_and_no_row_is_lost(rows: list[Conversation], seed: int) -> None:
    split = divide(rows, SECTION.model_copy(update={"seed": seed}))
    keys = [{question_key(row) for row in part} for part in split.sets().values()]
    assert len(set().union(*keys)) == sum(map(len, keys))
    parts = [row for part in split.sets().values() for row in part]
    assert sorted(map(id, parts)) == sorted(map(id, rows))


@given(conversations)
def test_dropping_copies_keeps_each_row_once_in_order(rows: list[Conversation]) -> None:
    unique = drop_copies(rows)
    turns = [row.messages for row in unique]
    assert len(set(turns)) == len(turns)
    assert turns == list(dict.fromkeys(row.messages for row in rows))


@settings(max_examples=30)
@given(st.integers(20, 300), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_held_out_sets_have_the_shares_asked_for(count: int, test_share: float, validation_share: float) -> None:
    rows = [conversation(f"question {number}", "answer") for number in range(count)]
    split = divide(rows, SECTION.model_copy(update={"test_share": test_share, "validation_share": validation_share}))
    assert test_share * count <= len(split.test) < test_share * count + 1
    assert validation_share * count <= len(split.validation) < validation_share * count + 1


def test_a_seed_decides_the_division(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    assert load_split(section(path, seed=3)) == load_split(section(path, seed=3))
    assert load_split(section(path, seed=3)).test != load_split(section(path, seed=4)).test


def test_exact_copies_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = medical_rows()
    split = load_split(section(write_rows_file(tmp_path / "rows.jsonl", [*rows, *rows[:7]])))
    assert split.copies == 7
    assert sum(map(len, split.sets().values())) == len(rows)


def test_rows_of_two_files_are_divided_together(tmp_path: Path) -> None:
    first = write_rows_file(tmp_path / "a.jsonl", medical_rows()[:20])
    second = tmp_path / "b.json"
    rows = [
        {"instruction": row["question"].upper(), "input": "", "output": "Another answer."}
        for row in medical_rows()[:20]
    ]
    second.write_text(json.dumps(rows))
    sources = (Source(path=str(first)), Source(path=str(second), format="alpaca"))
    split = load_split(DataSection(sources=sources))
    held_out = {question_key(row) for row in (*split.test, *split.validation)}
    assert len(split.test) == 4
    assert not held_out & {question_key(row) for row in split.train}


def test_max_rows_draws_that_many_by_seed(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    drawn = [load_split(section(path, max_rows=20, seed=seed)) for seed in (1, 1, 2)]
    assert [sum(map(len, split.sets().values())) for split in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows_to_divide_are_refused(tmp_path: Path, count: int) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", medical_rows()[:count])
    with pytest.raises(DataError, match=f"{count} rows are too few to divide"):
        load_split(section(path))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is anaemia?", "what is ANAEMIA"),
        ("Caf\u00e9 au lait spots", "Cafe\u0301  au-lait spots!"),
        ("ﬁrst Straße", "First STRASSE"),
    ],
)
def test_spelling_does_not_make_another_question(one: str, other: str) -> None:
    assert question_key(conversation(one, "a")) == question_key(conversation(other, "b"))


@pytest.mark.parametrize(("one", "other"), [("Type 1 diabetes", "Type 2 diabetes"), ("HbA1c", "Hb A1c"), ("何", "哪")])
def test_other_words_make_another_question(one: str, other: str) -> None:
    assert question_key(conversation(one, "a")) != question_key(conversation(other, "a"))


def test_written_sets_read_back_equal_reasoning_included(tmp_path: Path) -> None:
    rows = [dict(row, reasoning=f"Because of {number}.") for number, row in enumerate(medical_rows())]
    split = load_split(section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    write_split(split, tmp_path / "data")
    for name, part in split.sets().items():
        read = read_conversations(tmp_path / "data" / f"{name}.jsonl", "messages")
        assert [row.messages for row in read] == [row.messages for row in part]
