import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.data import DataSection, Source
from finetune.data.division import Division, divide, repeat_by_weight
from finetune.data.duplicates.duplicates import question_key
from finetune.data.duplicates.groups import Groups
from finetune.data.prepare import Summary, describe, prepare, read_set
from gladstone.chat.messages import Conversation, Message
from gladstone.commands.progress import Silent
from gladstone.config import build_config
from gladstone.errors import ConfigError, DataError
from gladstone.formats import read_conversations
from tests.tiny_models import medical_rows, write_rows_file

SECTION = DataSection(sources=(Source(path="unused.jsonl"),))
SETS = ("train", "validation", "test")


def conversation(question: str, answer: str, line: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), f"rows.jsonl:{line}")


def section(*paths: Path, **fields: Any) -> DataSection:
    return DataSection.model_validate({"sources": [{"path": str(path)} for path in paths], **fields})


def prepared(folder: Path, chosen: DataSection) -> tuple[Summary, dict[str, list[Conversation]]]:
    summary = prepare(chosen, folder, Silent())
    return summary, {name: list(read_set(folder, name)) for name in SETS}


def dropped(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


def grouped(pairs: list[tuple[int, int]], count: int) -> Groups:
    groups = Groups(count)
    for one, other in pairs:
        groups.merge(one % count, other % count)
    return groups


pairs = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=40)


@given(st.integers(1, 60), pairs, st.integers(0, 1000), st.sampled_from(["seed", "hash"]))
def test_no_group_is_in_two_sets_and_no_row_is_lost(
    count: int, joined: list[tuple[int, int]], seed: int, division: str
) -> None:
    groups = grouped(joined, count)
    chosen = SECTION.model_copy(update={"seed": seed, "division": division})
    sets = divide(range(count), groups, chosen, lambda row: row).sets()
    heads = [{groups.root(row) for row in part} for part in sets.values()]
    assert len(set().union(*heads)) == sum(map(len, heads))
    assert sorted(row for part in sets.values() for row in part) == list(range(count))


@settings(max_examples=30)
@given(st.integers(20, 300), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_held_out_sets_have_the_shares_asked_for(count: int, test: float, validation: float) -> None:
    chosen = SECTION.model_copy(update={"test": test, "validation": validation})
    sets = divide(range(count), Groups(count), chosen, lambda row: row)
    assert (len(sets.test), len(sets.validation)) == (round(test * count), round(validation * count))


def test_held_out_sets_have_the_numbers_asked_for_though_groups_are_large() -> None:
    groups = grouped([(0, row) for row in range(30)] + [(40, 41)], 100)
    sets = divide(range(100), groups, section(Path("x"), test=17, validation=5), lambda row: row)
    assert (len(sets.test), len(sets.validation), len(sets.train)) == (17, 5, 78)


def test_division_by_hash_moves_no_row_when_rows_are_added() -> None:
    chosen = SECTION.model_copy(update={"division": "hash"})

    def place(count: int) -> dict[int, str]:
        sets = divide(range(count), Groups(count), chosen, lambda row: row).sets()
        return {row: name for name, rows in sets.items() for row in rows}

    before, after = place(500), place(900)
    assert {row: after[row] for row in before} == before
    shares = Counter(after.values())
    assert 50 < shares["test"] < 130
    assert 50 < shares["validation"] < 130


@pytest.mark.parametrize(
    ("sources", "wanted"),
    [
        ([{}, {}], {0: 60, 1: 40}),
        ([{"weight": 2.5}, {}], {0: 150, 1: 40}),
        ([{"weight": 0.5}, {"weight": 3}], {0: 30, 1: 120}),
        ([{}, {"share": 0.25}], {0: 60, 1: 20}),
        ([{}, {"share": 0.5}], {0: 60, 1: 60}),
    ],
)
def test_sources_are_mixed_as_their_weights_say(sources: list[dict[str, float]], wanted: dict[int, int]) -> None:
    made = [Source.model_validate({"path": "x"} | fields) for fields in sources]
    mixed = repeat_by_weight(range(100), lambda row: int(row >= 60), made, seed=1)
    assert Counter(int(row >= 60) for row in mixed) == wanted
    repeats = Counter(Counter(row for row in mixed if row < 60).values())
    assert max(repeats) - min(repeats) <= 1
    assert mixed == sorted(mixed)


def test_a_seed_decides_the_division(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    sets = [prepared(tmp_path / str(number), section(path, seed=seed))[1] for number, seed in enumerate((3, 3, 4))]
    assert sets[0] == sets[1]
    assert sets[0]["test"] != sets[2]["test"]


def test_copies_and_near_duplicates_are_left_out_with_what_they_repeat(tmp_path: Path) -> None:
    rows = medical_rows()
    again = [dict(row, answer=row["answer"].upper()) for row in rows[:3]]
    path = write_rows_file(tmp_path / "rows.jsonl", [*rows, *rows[:7], *again])
    summary, sets = prepared(tmp_path / "data", section(path))
    assert summary.dropped == {"exact copy": 7, "near duplicate": 3}
    assert sum(map(len, sets.values())) == len(rows)
    first = dropped(tmp_path / "data")[0]
    asked, answered = rows[0]["question"], rows[0]["answer"]
    assert first == {
        "source": f"{path}:41",
        "reason": "exact copy",
        "detail": f"of {path}:1",
        "before": {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]},
    }
    assert dropped(tmp_path / "data")[-1]["detail"] == f"of {path}:3, similarity 1.00"


def test_duplicates_that_are_kept_are_in_one_set(tmp_path: Path) -> None:
    rows = medical_rows()
    again = [dict(row, question=f"{row['question']}!", answer=row["answer"].upper()) for row in rows]
    path = write_rows_file(tmp_path / "rows.jsonl", [*rows, *again])
    summary, sets = prepared(tmp_path / "data", section(path, duplicates={"keep": True}))
    assert (summary.kept_duplicates, summary.left_out) == (40, 0)
    keys = [{question_key(row) for row in part} for part in sets.values()]
    assert len(set().union(*keys)) == sum(map(len, keys))
    assert [len(sets[name]) for name in SETS] == [64, 8, 8]


def test_rows_that_ask_the_same_are_in_one_set(tmp_path: Path) -> None:
    first = write_rows_file(tmp_path / "a.jsonl", medical_rows()[:20])
    second = tmp_path / "b.json"
    rows = [
        {"instruction": row["question"].upper(), "input": "", "output": "Quite another answer is given here."}
        for row in medical_rows()[:20]
    ]
    second.write_text(json.dumps(rows))
    _, sets = prepared(tmp_path / "data", section(first, second, duplicates={"similarity": None}))
    held_out = {question_key(row) for row in (*sets["test"], *sets["validation"])}
    assert len(sets["test"]) == 4
    assert not held_out & {question_key(row) for row in sets["train"]}


def test_every_row_is_in_a_set_or_has_a_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        *medical_rows(),
        {"question": "Why?", "answer": "So."},
        {"question": "What is <b>this</b> then?", "answer": "<br>&nbsp;"},
        {"question": "What is it that echoes?", "answer": "what is it that ECHOES"},
        {"question": "Is a list a text?", "answer": ["No."]},
        {"question": "Whose is the number?", "answer": "It is that of Jane. Write to jane@example.org about it."},
        {"question": "What does it mainly do?", "answer": "It filters blood. It also makes bile, and it stores the"},
    ]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    cleaning = {"privacy": "drop", "html": True, "min_chars": 10, "echoes": True, "cut_answers": "drop sure"}
    chosen = section(path, skip_bad=True, cleaning=cleaning)
    summary, sets = prepared(tmp_path / "data", chosen)
    told = dropped(tmp_path / "data")
    assert [(line["source"], line["reason"]) for line in sorted(told, key=lambda line: line["source"])] == [
        (f"{path}:41", "too short"),
        (f"{path}:42", "empty"),
        (f"{path}:43", "echo"),
        (f"{path}:44", "bad row"),
        (f"{path}:45", "personal data"),
        (f"{path}:46", "cut"),
    ]
    assert summary.personal == {"e-mail": 1}
    assert sum(map(len, sets.values())) + len(told) == len(rows)
    assert summary.dropped.total() == len(told)
    assert summary.read == len(rows)
    assert json.loads((tmp_path / "data" / "data.json").read_text())["dropped"] == dict(summary.dropped)


def test_personal_data_is_told_of_or_masked(tmp_path: Path) -> None:
    rows = [*medical_rows(), {"question": "How do I reach her?", "answer": "Write to jane@example.org for that."}]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    _, told = prepared(tmp_path / "told", section(path))
    _, masked = prepared(tmp_path / "masked", section(path, cleaning={"privacy": "mask"}))
    _, unseen = prepared(tmp_path / "unseen", section(path, cleaning={"privacy": "off"}))

    def answers(sets: dict[str, list[Conversation]]) -> set[str]:
        return {row.answer.content for part in sets.values() for row in part}

    assert "Write to jane@example.org for that." in answers(told) & answers(unseen)
    assert answers(masked) - answers(told) == {"Write to [e-mail] for that."}
    record = (tmp_path / "told" / "personal.jsonl").read_text()
    assert json.loads(record) == {"source": f"{path}:41", "found": {"e-mail": 1}}
    assert (tmp_path / "unseen" / "personal.jsonl").read_text() == ""


REMOVE = {"boilerplate": "remove"}


def test_boilerplate_is_taken_off_and_counted(tmp_path: Path) -> None:
    note = "This text was checked by the editors of the encyclopaedia."
    rows = [dict(row, answer=f"{row['answer']} {note}") for row in medical_rows()]
    rows += [dict(row, question=f"{row['question']} In short.") for row in rows[:1]]
    summary, sets = prepared(
        tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows), cleaning=REMOVE)
    )
    assert summary.boilerplate_sentences == 1
    assert summary.changed["boilerplate"] == 41
    assert not [row for part in sets.values() for row in part if note in row.answer.content]


def test_rows_of_a_held_out_file_are_left_out(tmp_path: Path) -> None:
    rows = medical_rows()
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    bench = write_rows_file(tmp_path / "bench.jsonl", [dict(row, answer="Another.") for row in rows[:4]])
    summary, sets = prepared(tmp_path / "data", section(path, held_out=[{"path": str(bench)}]))
    assert summary.dropped == {"leak": 4}
    assert sum(map(len, sets.values())) == 36
    assert dropped(tmp_path / "data")[0]["detail"] == f"same question as {bench}:1, 1.00"


def test_max_rows_draws_that_many_by_seed(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    drawn = [
        prepared(tmp_path / str(number), section(path, max_rows=20, seed=seed)) for number, seed in enumerate((1, 1, 2))
    ]
    assert [sum(map(len, sets.values())) for _, sets in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1]
    assert drawn[0][1] != drawn[2][1]
    assert drawn[0][0].dropped == {"not drawn": 20}


def test_the_first_rows_of_a_source_are_taken(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    chosen = DataSection.model_validate({"sources": [{"path": str(path), "first_rows": 15}]})
    summary, sets = prepared(tmp_path / "data", chosen)
    assert summary.read == 15
    assert {row.source for part in sets.values() for row in part} == {f"{path}:{line}" for line in range(1, 16)}


def test_weights_repeat_training_rows_and_no_other(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl")
    chosen = DataSection.model_validate({"sources": [{"path": str(path), "weight": 2}]})
    summary, sets = prepared(tmp_path / "data", chosen)
    assert [summary.sets[name] for name in SETS] == [64, 4, 4]
    assert summary.repeated == 32
    assert len({row.messages for row in sets["train"]}) == 32


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows_to_divide_are_refused(tmp_path: Path, count: int) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", medical_rows()[:count])
    with pytest.raises(DataError, match=f"{count} rows are too few to divide: the .* would be empty"):
        prepare(section(path), tmp_path / "data", Silent())
    assert not {f"{name}.jsonl" for name in SETS} & {path.name for path in (tmp_path / "data").iterdir()}


def test_no_row_left_says_why(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So."}] * 5)
    with pytest.raises(DataError, match=r"no row is left of 5: too short 5 .*min_chars=10, the shortest 7"):
        prepare(section(path, cleaning={"min_chars": 10}), tmp_path / "data", Silent())


def test_rows_in_which_no_turn_is_scored_are_left_out_by_that_reason(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", medical_rows())
    with pytest.raises(DataError, match=r"no row is left of 40: no turn is scored 40"):
        prepare(section(path, train="flagged"), tmp_path / "data", Silent())


def test_bad_rows_stop_it_and_leave_only_their_record(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [*medical_rows(), {"question": "x", "answer": ["5"]}])  # type: ignore[dict-item]
    with pytest.raises(DataError, match=r"--skip-bad leaves them out: .*rows\.jsonl:41"):
        prepare(section(path), tmp_path / "data", Silent())
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["dropped.jsonl"]
    assert [line["source"] for line in dropped(tmp_path / "data")] == [f"{path}:41"]


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
    _, sets = prepared(tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    for name, part in sets.items():
        read = read_conversations(tmp_path / "data" / f"{name}.jsonl", "messages")
        assert [row.messages for row in read] == [row.messages for row in part]
    assert {row.answer.reasoning for part in sets.values() for row in part} == {row["reasoning"] for row in rows}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"validation": 0.5, "test": 0.4}, "less than a tenth"),
        ({"test": 1.5}, "whole numbers of rows"),
        ({"division": "hash", "test": 20}, "takes shares"),
        ({"sources": [{"path": "x", "weight": 2.0, "share": 0.1}]}, "weight or share, not both"),
        ({"sources": [{"path": "x", "share": 0.1}]}, "a source without one"),
        ({"sources": [{"path": "x"}, {"path": "y", "share": 0.6}, {"path": "z", "share": 0.5}]}, "a source without"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        section(Path("x"), **({"sources": [{"path": "x"}]} | fields)) if "sources" not in fields else (
            DataSection.model_validate(fields)
        )


def test_a_division_names_its_sets() -> None:
    assert Division([1], [2], [3]).sets() == {"train": [1], "validation": [2], "test": [3]}


def chat(system: str, question: str, answer: str) -> dict[str, Any]:
    roles = ("system", system), ("user", question), ("assistant", answer)
    return {"messages": [{"role": role, "content": content} for role, content in roles if content]}


NOTES = [f"Note {number}: {row['question']} {row['answer']}" for number, row in enumerate(medical_rows())]


def test_a_constant_question_joins_no_contexts(tmp_path: Path) -> None:
    rows = [chat(note, "What does the note say?", f"It says: {note[-60:]}") for note in NOTES]
    summary, sets = prepared(tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    assert [len(sets[name]) for name in SETS] == [32, 4, 4]
    assert (summary.left_out, summary.conflicts) == (0, 0)


@pytest.mark.parametrize("asked", [3, 5])
def test_all_questions_about_one_context_are_in_one_set(tmp_path: Path, asked: int) -> None:
    questions = ["Summarise it.", "Which drugs are named?", "How old is the patient?", "Who wrote it?", "Is it urgent?"]
    rows = [chat(note, question, f"{note[:9]}: {n}") for note in NOTES for n, question in enumerate(questions[:asked])]
    _, sets = prepared(tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    notes = [{row.messages[0].content for row in part} for part in sets.values()]
    assert sum(map(len, notes)) == len(NOTES)
    assert [len(sets[name]) for name in SETS[1:]] == [4 * asked] * 2


def test_conflicts_are_kept_and_reported(tmp_path: Path) -> None:
    rows = [
        *medical_rows(),
        *(row | {"answer": f"No, this is another answer: {n}."} for n, row in enumerate(medical_rows())),
    ]
    summary, sets = prepared(tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    assert sum(map(len, sets.values())) == 80
    assert (summary.conflicts, len(summary.conflict_examples)) == (40, 2)
    lines = [json.loads(line) for line in (tmp_path / "data" / "conflicts.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert lines[0]["source"].endswith("rows.jsonl:41")
    assert lines[0]["conflicts_with"].endswith("rows.jsonl:1")
    assert lines[0]["answer"] == "No, this is another answer: 0."
    assert "conflicts         40" in describe(summary, tmp_path)


def test_a_division_that_fails_names_the_group_and_an_option_that_helps(tmp_path: Path) -> None:
    rows = [{"question": "Who are you?", "answer": f"I am assistant number {number}."} for number in range(20)]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepare(section(path), tmp_path / "data", Silent())
    message = str(caught.value)
    assert all(
        part in message for part in ("20 rows", "rows.jsonl:1: “Who are you?”", "rows.jsonl:2: ", "together=false")
    )
    _, sets = prepared(tmp_path / "data", section(path, duplicates={"together": False}))
    assert [len(sets[name]) for name in SETS] == [16, 2, 2]


@pytest.mark.parametrize("count", [3, 5, 12, 16])
def test_a_few_rows_are_divided(tmp_path: Path, count: int) -> None:
    rows = [
        {"question": row["question"], "answer": "I am an assistant of the clinic."} for row in medical_rows()[:count]
    ]
    _, sets = prepared(tmp_path / "data", section(write_rows_file(tmp_path / "rows.jsonl", rows)))
    assert sum(map(len, sets.values())) == count
    assert len(sets["test"]) == len(sets["validation"]) == max(1, round(count / 10))


def test_the_encoding_of_the_section_is_that_of_the_sources_that_name_none() -> None:
    sources = [{"path": "a.csv"}, {"path": "b.csv", "encoding": "utf-16"}]
    made = build_config(DataSection, {"sources": sources, "encoding": "latin1"}, "recipe")
    assert [source.encoding for source in made.sources] == ["iso8859-1", "utf-16"]
    with pytest.raises(ConfigError, match="klingon"):
        build_config(DataSection, {"sources": sources, "encoding": "klingon"}, "recipe")
