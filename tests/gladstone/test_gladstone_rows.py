import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gladstone.artifacts import write_rows
from gladstone.errors import DataError
from gladstone.rows import Problems, read_rows


def sources(path: Path) -> list[str]:
    return [source.removeprefix(f"{path}:") for _, source in read_rows(path)]


def refuse(path: Path, content: str | bytes, message: str, *facts: str) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(f"{path}{message}")
    for fact in facts:
        assert fact in str(caught.value)


def test_rows_of_a_pretty_printed_array_know_the_line_they_start_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": 1}, {"b": [1, 2]}, {}, {"c": "two\nlines"}], indent=2))
    assert sources(path) == ["2", "5", "11", "12"]


def test_rows_of_an_array_on_one_line_are_all_on_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n\n[{"a": 1}, {"b": 2}]\n')
    assert sources(path) == ["3", "3"]


def test_blank_lines_count_and_hold_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \r\n{"b": 2}\r\n')
    assert sources(path) == ["1", "4"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "rows.jsonl"
    text = f"one{separator}two" if separator > "\x1f" else "one\\ftwo"
    path.write_text(f'{{"a": "{text}"}}\n{{"b": 2}}\n', encoding="utf-8")
    rows = list(read_rows(path))
    assert [source for _, source in rows] == [f"{path}:1", f"{path}:2"]
    assert rows[0][0] == {"a": f"one{separator}two"}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (b'[{"a": 1}]' if name == "rows.json" else b'{"a": 1}'))
    assert [row for row, _ in read_rows(path)] == [{"a": 1}]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/no.jsonl: no such data file.")):
        list(read_rows(tmp_path / "no.jsonl"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder.json: a folder without .xml files"):
        list(read_rows(tmp_path / "folder.json"))


@pytest.mark.parametrize(("name", "ending"), [("rows.doc", "'.doc'"), ("rows", "'nothing'")])
def test_another_ending_is_refused_before_the_file_is_read(tmp_path: Path, name: str, ending: str) -> None:
    with pytest.raises(DataError, match=f"the name ends in {ending}, expected .json, .jsonl, .csv"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    refuse(tmp_path / name, content, ": the data file is empty.")


def test_an_empty_array_holds_no_rows(tmp_path: Path) -> None:
    refuse(tmp_path / "rows.json", "[ \n ]", ": holds no rows.")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    first = b"[\n" if name == "rows.json" else b"{}\n"
    refuse(
        tmp_path / name,
        first + b'{"a": "caf\xe9"}\n]',
        ":2: not UTF-8 (byte 0xe9)",
        "data.encoding",
        "--encoding",
    )


def test_a_nul_byte_is_refused_with_its_line(tmp_path: Path) -> None:
    refuse(
        tmp_path / "rows.jsonl",
        '{"a": 1}\n{"a": "\0"}\n',
        ":2: not a JSON value: Invalid control character at (column 8).",
    )
    refuse(tmp_path / "rows.json", "\0\0\0", r":1: expected a JSON array ('['), found '\x00'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"b": 2}', ": the JSON array is cut short"),
        ('[{"a": 1},\n', ": the JSON array is cut short"),
        ("[", ": the JSON array is cut short"),
        (
            '[{"a": 1},\n {"b": "half',
            ":2: the row that starts here is not JSON: Unterminated string starting at (column 8)",
        ),
        ('[{"a": 1};\n {"b": 2}]', ":1: expected ',' or ']'"),
        ('[{"a": 1}]\n{"b": 2}', ": there is more text after the closing ']'"),
        (
            '\n{"a": 1}',
            ": the file is one object whose field 'a' is not a row",
        ),
        ('{"a": {"b": 1}', ": the JSON object is cut short"),
        ('{"a" {"b": 1}}', ":1: expected the id of a row"),
        ('[{"a": 1},\n 5]', ":2: expected an object with named fields, found a number"),
    ],
)
def test_a_damaged_array_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    refuse(tmp_path / "rows.json", text, message)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("null", "null"),
        ("[1]", "an array"),
        ('"a"', "a text"),
        ("5", "a number"),
        ("0.5", "a number"),
        ("true", "true or false"),
    ],
)
def test_a_row_that_is_no_object_is_refused(tmp_path: Path, value: str, kind: str) -> None:
    refuse(
        tmp_path / "rows.jsonl", f'{{"a": 1}}\n{value}\n', f":2: expected an object with named fields, found {kind}."
    )


def test_a_line_that_is_no_json_is_refused_with_its_line(tmp_path: Path) -> None:
    refuse(
        tmp_path / "rows.jsonl",
        '{"a": 1}\n{"a": \n',
        ":2: not a JSON value: Expecting value (column 7).",
    )


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_deep_nesting_is_a_message_and_no_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path.write_text(f"[{text}]" if name == "rows.json" else text)
    with pytest.raises(DataError, match=r":1: .*: nested too deeply\."):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_number_of_a_million_digits_is_a_message_and_no_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '{"a": ' + "1" * 1_000_000 + "}"
    path.write_text(f"[{text}]" if name == "rows.json" else text)
    with pytest.raises(DataError, match=r":1: .*: a number too long\."):
        list(read_rows(path))


def test_notes_keep_their_order_add_up_their_rows_and_are_bounded() -> None:
    problems = Problems()
    problems.note("rows.csv: read as cp1252")
    for _ in range(1200):
        problems.note("field 'id' is not used", 1)
    problems.note("field 'tag' is not used", 1)
    assert problems.noted() == [
        "rows.csv: read as cp1252",
        "field 'id' is not used (1,200 rows)",
        "field 'tag' is not used (1 row)",
    ]
    for number in range(1000):
        problems.note(f"field {number} is not used", 1)
    assert len(problems.noted()) <= 31
    assert problems.noted()[-1] == "and 973 more notes"
    assert problems.count == 0


json_rows = st.lists(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    ),
    min_size=1,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(rows=json_rows, indent=st.sampled_from([None, 0, 3]))
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[dict[str, object]], indent: int | None) -> None:
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    write_rows(lines, rows)
    array.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert [row for row, _ in read_rows(lines)] == rows
    assert [row for row, _ in read_rows(array)] == rows
    assert sources(lines) == [str(number) for number in range(1, len(rows) + 1)]
