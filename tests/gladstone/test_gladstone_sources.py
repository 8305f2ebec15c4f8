import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gladstone.artifacts import sha256_path
from gladstone.errors import DataError
from gladstone.formats import read_conversations
from gladstone.rows import Problems, json_arrays, read_rows

ROWS = [
    {"question": 'What is "sepsis"?', "answer": "Organ failure,\nfrom infection."},
    {"question": "Größe? 何", "answer": "½\u2028naïve 🫀"},
    {"question": "Three?", "answer": "So."},
]
MEDQUAD = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="7" source="NIH" url="https://example.org"><Focus>Liver</Focus><QAPairs>
<QAPair pid="1"><Question qid="7-1" qtype="use">What is it for &amp; why?</Question><Answer>Blood.</Answer></QAPair>
<QAPair pid="2"><Question qid="7-2" qtype="use">Where?</Question><Answer>Right.</Answer></QAPair>
</QAPairs></Document>"""


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), whole)
    return whole.getvalue()


def zstd(data: bytes) -> bytes:
    import pyarrow as pa

    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "rows.jsonl": lines,
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "by-id.json": lambda rows: json.dumps({str(number): row for number, row in enumerate(rows)}).encode(),
    "rows.csv": lambda rows: table(rows, ","),
    "rows.tsv": lambda rows: table(rows, "\t"),
    "rows.parquet": parquet,
    "rows.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "rows.csv.gz": lambda rows: gzip.compress(table(rows, ",")),
    "rows.json.zst": lambda rows: zstd(json.dumps(rows).encode()),
    "rows.jsonl.zst": lambda rows: zstd(lines(rows)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[name](ROWS))
    assert [row for row, _ in read_rows(path)] == ROWS


def test_rows_of_a_table_know_the_line_they_start_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(table(ROWS, ","))
    assert [source for _, source in read_rows(path)] == [f"{path}:{line}" for line in (2, 4, 5)]


def test_pairs_of_a_folder_of_xml_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    for name in ("b/2.xml", "a/1.xml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(MEDQUAD, encoding="utf-8")
    (tmp_path / "README.txt").write_text("no rows")
    talks = read_conversations(tmp_path, "auto")
    assert [talk.source for talk in talks] == [
        f"{tmp_path}/{name}" for name in ("a/1.xml:1", "a/1.xml:2", "b/2.xml:1", "b/2.xml:2")
    ]
    assert [message.content for message in talks[0].messages] == ["What is it for & why?", "Blood."]


def test_a_pair_keeps_its_type_focus_and_source(tmp_path: Path) -> None:
    path = tmp_path / "1.xml"
    path.write_text(MEDQUAD, encoding="utf-8")
    row, _ = next(read_rows(path))
    assert (row["qtype"], row["Focus"], row["Source"], row["url"]) == ("use", "Liver", "NIH", "https://example.org")


def test_one_damaged_file_of_a_folder_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(MEDQUAD[:-30], encoding="utf-8")
    (tmp_path / "2.xml").write_text(MEDQUAD, encoding="utf-8")
    problems = Problems()
    assert len(list(read_rows(tmp_path, problems))) == 2
    assert problems.count == 1
    assert problems.shown[0].startswith(f"{tmp_path}/1.xml: not XML")
    with pytest.raises(DataError, match=r"1\.xml: not XML"):
        list(read_rows(tmp_path))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=json_rows, indent=st.sampled_from([None, 0, 2]), chunk=st.integers(1, 40), ascii_only=st.booleans())
def test_an_array_reads_the_same_however_its_bytes_arrive(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    indent: int | None,
    chunk: int,
    ascii_only: bool,
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    if any(byte_like in path.read_bytes() for byte_like in (b"\xed\xa0", b"\xed\xb0")):
        return  # half of a surrogate pair is no UTF-8; test_gladstone_broken has it
    whole = list(read_rows(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "CHUNK_BYTES", chunk)
        assert list(read_rows(path)) == whole
    assert [row for row, _ in whole] == rows


def test_an_error_in_a_later_chunk_names_its_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [json.dumps({"question": "Why?", "answer": "x" * 500})] * 1000
    path.write_text("[" + ",\n".join(rows) + ",\n" + '{"a": 1, "b": oops}]')
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value) == f"{path}:1001: the row that starts here is not JSON: Expecting value (column 15)."
    path.write_text("[" + ", ".join(rows) + ', {"b": oops}]')
    column = len("[" + ", ".join(rows) + ', {"b": ') + 1
    with pytest.raises(DataError, match=rf"rows\.json:1: .* Expecting value \(column {column}\)"):
        list(read_rows(path))


def test_the_hash_of_a_folder_changes_with_names_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "1.xml"
    file.write_text("a")
    first = sha256_path(tmp_path)
    assert sha256_path(tmp_path) == first
    file.write_text("b")
    second = sha256_path(tmp_path)
    file.rename(tmp_path / "2.xml")
    assert len({first, second, sha256_path(tmp_path), sha256_path(tmp_path / "2.xml")}) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="needs pyarrow's absence simulated through the import system")
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.zst"])
def test_without_pyarrow_it_says_what_brings_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from gladstone.errors import UnsupportedError

    path = tmp_path / name
    path.write_bytes(WRITERS[name](ROWS))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == "pyarrow" else real(module))
    with pytest.raises(
        UnsupportedError, match=r"pyarrow, not installed here\. Run: pip install 'gladstone\[finetune\]'"
    ):
        list(read_rows(path))
