"""Files that contradict their names, use other separators and encodings, or are damaged in the middle."""

import codecs
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gladstone.errors import DataError
from gladstone.rows import DEFAULT_OPTIONS, Problems, ReadOptions, read_rows

ROWS = [{"question": f"Question {number}?", "answer": f"Answer {number}."} for number in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()


def table(separator: str, rows: Sequence[dict[str, Any]] = ROWS, **options: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(
    path: Path, content: bytes | None = None, reading: ReadOptions = DEFAULT_OPTIONS
) -> tuple[list[Any], Problems]:
    if content is not None:
        path.write_bytes(content)
    problems = Problems()
    return [row for row, _ in read_rows(path, problems, reading)], problems


def workbook(path: Path, sheets: dict[str, list[list[Any]]], hidden: Sequence[str] = ()) -> Path:
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        sheet.sheet_state = "hidden" if title in hidden else "visible"
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def cells() -> list[list[Any]]:
    return [["question", "answer"], *([row["question"], row["answer"]] for row in ROWS)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", ARRAY),
        ("rows.jsonl", json.dumps(ROWS).encode()),
        ("rows.jsonl", PRETTY),
        ("rows.jsonl", table(",")),
        ("rows.json", LINES),
        ("rows.json", b"\xef\xbb\xbf" + LINES),
        ("rows.json", PRETTY),
        ("rows.json", table(";")),
        ("rows.csv", LINES),
        ("rows.csv", ARRAY),
        ("rows.tsv", LINES),
        ("rows.xml", LINES),
        ("rows.xlsx", table(",")),
        ("rows.xlsx", b"\xef\xbb\xbf" + table(";")),
        ("rows.parquet", LINES),
        ("rows.jsonl", gzip.compress(LINES, mtime=0)),
        ("rows.jsonl.gz", LINES),
        ("rows.json.zst", ARRAY),
        ("rows.csv", gzip.compress(LINES, mtime=0)),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_read_as_it_is_with_a_note(
    tmp_path: Path, name: str, content: bytes
) -> None:
    rows, problems = read(tmp_path / name, content)
    assert rows == ROWS
    assert problems.count == 0
    assert any(name in note and "its name suggests" in note for note in problems.noted())


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", LINES), ("rows.json", ARRAY), ("rows.csv", table(",")), ("rows.tsv", table("\t")),
     ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)), ("rows.csv", table(",", quoting=csv.QUOTE_ALL))],
)  # fmt: skip
def test_a_file_that_is_what_its_name_says_has_no_note(tmp_path: Path, name: str, content: bytes) -> None:
    rows, problems = read(tmp_path / name, content)
    assert rows == ROWS
    assert problems.noted() == []


def test_a_parquet_file_and_a_workbook_are_known_under_any_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.jsonl")
    workbook(tmp_path / "rows.xlsx", {"A": cells()}).rename(tmp_path / "rows.csv")
    for name, what in [("rows.jsonl", "Parquet"), ("rows.csv", "Excel")]:
        rows, problems = read(tmp_path / name)
        assert rows == ROWS
        assert what in problems.noted()[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "HTML"),
        (b"<html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100, ".xls"),
        (b"%PDF-1.7\n", "PDF"),
        (b"BZh91AY&SY", "bzip2"),
        (b"PK\x03\x04cut", "ZIP"),
        (b"SQLite format 3\0", "SQLite"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json", "rows.xlsx"])
def test_a_file_of_a_kind_that_holds_no_rows_is_refused_by_that_kind(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / name, content)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_separator_of_a_table_is_found_by_looking(
    tmp_path: Path, separator: str, mark: bytes, quoting: int
) -> None:
    given = [{"question": "What, and why; who | when?", "answer": f'He said "no",\nthen {i}; so.'} for i in range(5)]
    rows, problems = read(tmp_path / "rows.csv", mark + table(separator, given, quoting=quoting))
    assert rows == given
    assert len(problems.noted()) == (separator != ",")
    rows, _ = read(tmp_path / "rows.csv", mark + b"sep=" + separator.encode() + b"\r\n" + table(separator, given))
    assert rows == given


GERMAN = "Was hilft gegen müde Füße? Über Nacht hochlegen; größere Schuhe tragen."
POLISH = "Gdzie leży wątroba? Pod żebrami po prawej stronie, źródło bólu może być inne."
RUSSIAN = "Что такое лихорадка? Это повышение температуры тела."
CURLY = "It’s the patient’s “own” choice – always."
CHINESE = "什么是发烧？发烧是体温升高。为什么头疼？可能是喝水太少。"
ACCENTED = "The café’s naïve dose is 5 µg – £3 at 38 °C."
SHORT_JAPANESE = "患者は発熱と咳があります"
KOREAN = "환자는 열과 기침이 있습니다. 식후에 약을 드세요."
JAPANESE = "熱とは何ですか？体温が上がることです。肝臓はどこですか？右の肋骨の下にあります。"


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        (GERMAN, "cp1252", "cp1252"),
        (CURLY, "cp1252", "cp1252"),
        (POLISH, "cp1250", "cp1250"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8_r", "koi8_r"),
        (CHINESE, "gb18030", "gb18030"),
        (JAPANESE, "shift_jis", "cp932"),
        (SHORT_JAPANESE, "shift_jis", "cp932"),
        (KOREAN, "cp949", "cp949"),
        (ACCENTED, "cp1252", "cp1252"),
        (GERMAN, "utf-16", "utf-16"),
        (CHINESE, "utf-16", "utf-16"),
        (GERMAN, "utf-32", "utf-32"),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_a_file_in_another_encoding_is_read_and_the_encoding_said(
    tmp_path: Path, name: str, text: str, encoding: str, said: str
) -> None:
    given = [{"question": f"{number}. {text}", "answer": f"{text} {number}"} for number in range(20)]
    made = {
        "rows.csv": table(",", given).decode(),
        "rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given),
        "rows.json": json.dumps(given, ensure_ascii=False, indent=1),
    }[name]
    rows, problems = read(tmp_path / name, made.encode(encoding))
    assert rows == given
    assert any(f"read as {said}" in note for note in problems.noted())


def test_the_encoding_is_found_behind_a_long_ascii_beginning(tmp_path: Path) -> None:
    given = [{"question": "What is it?", "answer": "x" * 200}] * 6000 + [{"question": "Wo?", "answer": GERMAN}] * 30
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given).encode("cp1252")
    rows, problems = read(tmp_path / "rows.jsonl", content)
    assert rows == given
    assert any("cp1252" in note for note in problems.noted())


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
@pytest.mark.parametrize("accents", [False, True])
def test_a_damaged_byte_is_a_bad_row_and_no_other_encoding(tmp_path: Path, name: str, *, accents: bool) -> None:
    given = [{"question": f"{n}?", "answer": f"{GERMAN if accents else 'A rest helps'} @{n}@"} for n in range(50)]
    made = {
        "rows.csv": table(",", given),
        "rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given).encode(),
        "rows.json": json.dumps(given, ensure_ascii=False, indent=1).encode(),
    }[name]
    content = made.replace(b"@7@", b"\xef").replace(b"@30@", b"\x81\xff")
    rows, problems = read(tmp_path / name, content)
    assert rows == [row for number, row in enumerate(given) if number not in (7, 30)]
    assert problems.count == 2
    assert "byte 0xef" in problems.shown[0]
    assert "byte 0x81" in problems.shown[1]


def test_an_encoding_that_is_named_is_used_and_contradicted_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    content = "question,answer\nWarum?,Für müde Füße\n".encode("cp1252")
    rows, _ = read(path, content, ReadOptions(encoding="cp1252"))
    assert rows == [{"question": "Warum?", "answer": "Für müde Füße"}]
    with pytest.raises(DataError, match=r"rows.csv:2: not utf-8|:2: not UTF-8"):
        list(read_rows(path, None, ReadOptions(encoding="utf-8")))
    with pytest.raises(DataError, match=r":2: byte 0xfc is not ascii"):
        list(read_rows(path, None, ReadOptions(encoding="ascii")))


def test_rows_before_the_end_of_a_cut_file_are_kept_and_the_rest_is_unknown(tmp_path: Path) -> None:
    given = [{"question": f"{n}?", "answer": random.Random(n).randbytes(40).hex()} for n in range(3000)]
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in given).encode())
    rows, problems = read(tmp_path / "rows.jsonl.gz", content[: len(content) // 2])
    assert 1000 < len(rows) < 2000
    assert rows == given[: len(rows)]
    assert problems.count == 0
    assert "unknown" in problems.unread[0]
    with pytest.raises(DataError, match="gzip"):
        problems.check("rows")


def test_a_workbook_is_read_with_its_types_sheets_and_row_numbers(tmp_path: Path) -> None:
    from datetime import date, datetime

    rows: list[list[Any]] = [
        ["My rows", None, None],
        [],
        ["question", "answer", "when"],
        ["Why?", "So_x000D_.", datetime(2024, 3, 1)],
        [None, None, None],
        ["How many?", 4.0, date(2024, 5, 6)],
    ]
    path = workbook(tmp_path / "rows.xlsx", {"Hidden": cells(), "Data": rows, "Notes": [["x"]]}, hidden=["Hidden"])
    problems = Problems()
    found = list(read_rows(path, problems))
    assert found == [
        ({"question": "Why?", "answer": "So\r.", "when": "2024-03-01"}, f"{path}:4"),
        ({"question": "How many?", "answer": 4, "when": "2024-05-06"}, f"{path}:6"),
    ]
    assert "read sheet 'Data'; not read: 'Hidden', 'Notes'" in problems.noted()[0]
    assert "header is row 3" in problems.noted()[1]
    assert read(path, reading=ReadOptions(sheet="Hidden"))[0] == ROWS
    with pytest.raises(DataError, match="no sheet 'Other'; there are 'Hidden', 'Data', 'Notes'"):
        read(path, reading=ReadOptions(sheet="Other"))


def test_cells_of_a_workbook_that_have_no_value_are_named(tmp_path: Path) -> None:
    rows = [["question", "answer"], ["Why?", "=A2&B9"], ["Why?", "#REF!"], ["Why?", "So.", "extra"], ["Why?", "So."]]
    path = workbook(tmp_path / "rows.xlsx", {"A": rows})
    found, problems = read(path)
    assert found == [{"question": "Why?", "answer": "So."}]
    assert problems.count == 3
    assert ":2: cell B2 is a formula without a stored value" in problems.shown[0]
    assert ":3: cell B3 contains the error #REF!" in problems.shown[1]
    assert ":4: more cells than the 2" in problems.shown[2]


def test_an_empty_or_damaged_workbook_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "rows.xlsx", {"A": [["only one"]]})
    with pytest.raises(DataError, match="no visible sheet has a header"):
        read(path)
    whole = path.read_bytes()
    for content in (whole[:-200], whole[: len(whole) // 2], b"PK\x03\x04" + b"\0" * 500):
        with pytest.raises(DataError, match=r"rows.xlsx: "):
            read(path, content)
    with pytest.raises(DataError, match="holds no rows"):
        read(workbook(path, {"A": [["question", "answer"]]}))


def test_a_broken_row_in_the_middle_of_an_array_costs_itself(tmp_path: Path) -> None:
    turns = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "So."}]} for n in range(9)
    ]
    for indent in (None, 1):
        text = json.dumps(turns, indent=indent)
        for before, after in [('"4?"', '"4?'), ('"4?"', '"4"?"'), ('"4?"', "4?"), ('"4?"}', '"4?"'), ('"8?"', '"8?')]:
            damaged = text.replace(before, after, 1) if before in text else text.replace('"4?"', "", 1)
            rows, problems = read(tmp_path / "rows.json", damaged.encode())
            assert len(rows) == 8, (indent, before, after)
            assert problems.count == 1
            assert not problems.unread


DAMAGES: dict[str, Callable[[str], str]] = {
    "too few": lambda record: record.split(",")[0],
    "too many": lambda record: record + ",more",
    "open quote": lambda record: '"' + record,
    "quote within": lambda record: f'"x" y{record}',
    "open quote at the end": lambda record: record.rpartition(",")[0] + ',"end',
    "byte": lambda record: record + "\udcff",
    "nul": lambda record: record + "\0",
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data(), width=st.integers(2, 4), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_damaged_records_cost_themselves_and_are_counted_truly(
    tmp_path: Path, data: st.DataObject, width: int, quoting: int
) -> None:
    count = data.draw(st.integers(4, 40))
    text = st.sampled_from(["So.", "Yes, and no.", 'He said "no".', "Größe", "a, b, c, d", "1", "-"])
    given_rows = [{f"f{place}": f"{n} {data.draw(text)}" for place in range(width)} for n in range(count)]
    records = table(",", given_rows, quoting=quoting, lineterminator="\n").decode().splitlines()
    # two damaged records beside each other can look like one of two lines
    places = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count // 3)))
    places = [place for before, place in zip([-2, *places], places, strict=False) if place - before > 1]
    kinds = [data.draw(st.sampled_from(sorted(DAMAGES))) for _ in places]
    for place, kind in zip(places, kinds, strict=True):
        records[place + 1] = DAMAGES[kind](records[place + 1])
    content = ("\n".join(records) + "\n").encode("utf-8", "surrogateescape")
    rows, problems = read(tmp_path / "rows.csv", content)
    assert rows == [row for place, row in enumerate(given_rows) if place not in places], kinds
    assert problems.count == len(places)


@pytest.mark.parametrize("damage", ['"Why" so?,So.', '"Why?,So.', "Why?", 'Why?,"He said "no", and\nleft, then."'])
def test_a_damaged_record_among_records_of_several_lines_costs_itself(tmp_path: Path, damage: str) -> None:
    given = [{"question": f"Q{n}?", "answer": f"First, {n}\nsecond, {n}\nthird"} for n in range(10)]
    head, _, rest = table(",", given, lineterminator="\n").decode().partition('Q5?,"')
    rows, problems = read(tmp_path / "rows.csv", f'{head}{damage}\nQ5?,"{rest}'.encode())
    assert rows == given
    assert problems.count == 1
