"""A corpus of broken data files, accidental and hostile. `python -m tests.data.broken FOLDER` writes it.

Each case has the format to read it as, what its error must say, and how many good rows are left when bad ones are
skipped (None: the file as a whole is refused, skipping or not).
"""

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOOD = {"question": "What does the liver do?", "answer": "It clears the blood of waste."}
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
FUNNY = {"QUESTION": "Does it?", "CONTEXTS": ["It was tried."], "LONG_ANSWER": "It does.", "final_decision": "yes"}
PAIR = "<QAPair pid='1'><Question qid='1' qtype='use'>Why?</Question><Answer>So.</Answer></QAPair>"


@dataclass(frozen=True)
class Broken:
    """One broken file: its name, its bytes, and what reading it must say."""

    name: str
    content: bytes | Callable[[], bytes]
    says: str
    good_rows: int | None = None
    format: str = "qa"

    def write(self, folder: Path) -> Path:
        """The file on disk."""
        path = folder / self.name
        path.write_bytes(self.content if isinstance(self.content, bytes) else self.content())
        return path


def cases() -> list[Broken]:
    """The whole corpus."""
    return [*_encodings(), *_lines(), *_arrays(), *_fields(), *_talks(), *_tables(), *_xml(), *_packed(), *_parquet()]


def _row(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


ROW = _row()


def _encodings() -> Iterator[Broken]:
    umlaut = json.dumps(GOOD | {"answer": "Größe"}, ensure_ascii=False)
    yield Broken("latin1.jsonl", ROW + b"\n" + umlaut.encode("latin-1"), ":2: not UTF-8 (byte 0xf6)", 1)
    yield Broken("latin1.json", b"[" + umlaut.encode("latin-1") + b"]", ":1: not UTF-8 (byte 0xf6)", 0)
    yield Broken("latin1.csv", "question,answer\nWhy?,Größe".encode("latin-1"), ":2: not UTF-8 (byte 0xf6)", 0)
    yield Broken("utf16.json", b"\xff\xfe[\0]\0", ": holds no rows")
    yield Broken("half-a-unit.jsonl", (umlaut + "\n").encode("utf-16") + b"{", ":2: byte 0x7b is not utf-16", 1)
    yield Broken("utf16-unmarked.jsonl", umlaut.encode("utf-16-le"), ": every other byte is 0")
    yield Broken("utf32.jsonl", umlaut.encode("utf-32-be"), ": every other byte is 0")
    yield Broken(
        "may-be-two.csv",
        b"question,answer\n" + b"Why?,\xe4\xf6\xfc\n" * 2 + b"Why?,So.\n" * 5,
        ":2: not UTF-8 (byte 0xe4). Save the file as UTF-8, or name its encoding",
        5,
    )
    yield Broken("half-character.jsonl", ROW + b"\n" + b'{"question": "\xc3', ":2: not UTF-8 (byte 0xc3)", 1)
    yield Broken("half-character.json", b"[" + ROW + b', "\xe2\x82', ":1: the row that starts here is not JSON", 1)
    yield Broken("bom-in-the-middle.jsonl", ROW + b"\n\xef\xbb\xbf" + ROW, ":2: not a JSON value", 1)
    yield Broken("bom-only.jsonl", b"\xef\xbb\xbf", ": the data file is empty")
    yield Broken("nul-bytes.jsonl", b"\0" * 5000, ":1: not a JSON value", 0)
    yield Broken("nul-in-text.jsonl", ROW + b'\n{"question": "a\0b"}\n' + ROW, ":2: not a JSON value", 2)
    yield Broken("binary.json", bytes(range(256)) * 20, ":1: expected a JSON array")
    yield Broken(
        "surrogate.jsonl", ROW + b'\n{"question": "\\ud800", "answer": "b"}', ":2: field 'question' contains half", 1
    )


def _lines() -> Iterator[Broken]:
    yield Broken("empty.jsonl", b"", ": the data file is empty")
    yield Broken("blank.jsonl", b"\n \n\r\n", ": the data file is empty")
    yield Broken("blank-lines.jsonl", ROW + b"\n" * 3_000_000 + ROW, ":100002: 100,000 blank lines before it", 1)
    yield Broken("half-a-line.jsonl", ROW + b"\n" + ROW[:30], ":2: not a JSON value: Unterminated string", 1)
    yield Broken("two-on-a-line.jsonl", ROW + ROW + b"\n" + ROW, ":1: not a JSON value: Extra data", 1)
    yield Broken("single-quotes.jsonl", b"{'question': 'a', 'answer': 'b'}\n" + ROW, ":1: not a JSON value", 1)
    yield Broken(
        "long-line.jsonl",
        lambda: ROW + b"\n" + _row(answer="x" * 50_000_000) + b"\n" + ROW,
        ":2: the line is longer than 16 MiB",
        2,
    )
    array = b"[" + ROW + b"]\n"
    yield Broken("arrays-in-lines.jsonl", array * 2, ":1: expected an object with named fields, found an array", 0)
    yield Broken(
        "numbers.jsonl", b"1\n2.5\nnull\ntrue\n" + ROW, ":1: expected an object with named fields, found a number", 1
    )
    yield Broken("deep.jsonl", ROW + b'\n{"question": ' + b"[" * 100_000, ":2: not a JSON value: nested too deeply", 1)
    yield Broken(
        "digits.jsonl", b'{"question": ' + b"9" * 1_000_000 + b"}", ":1: not a JSON value: a number too long", 0
    )
    yield Broken("nan.jsonl", b'{"question": NaN, "answer": Infinity}\n' + ROW, ":1: not a JSON value: NaN", 1)
    yield Broken("twice.jsonl", ROW[:-1] + b', "answer": "Another."}\n' + ROW, "the field 'answer' is given twice", 1)
    yield Broken("html.jsonl", b"<!DOCTYPE html><html>404 Not Found</html>", ": is an HTML page")
    yield Broken(
        "lfs-pointer.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        ": is a Git LFS pointer",
    )
    yield Broken("many-bad.jsonl", b'{"question": "a"}\n' * 5000 + ROW, "and 4,990 more", 1)
    yield Broken("no-such-ending.txt.doc", ROW, ": the name ends in '.doc'")


def _arrays() -> Iterator[Broken]:
    yield Broken("empty.json", b"", ": the data file is empty")
    yield Broken("no-rows.json", b"[ ]", ": holds no rows")
    yield Broken("cut-short.json", b"[" + ROW + b",\n" + ROW[:20], ":2: the row that starts here is not JSON", 1)
    yield Broken("no-closing.json", b"[" + ROW, ": the JSON array is cut short", 1)
    yield Broken("odd-comma.json", b"[" + ROW + b";\n" + ROW + b"]", ":1: expected ',' or ']'", 2)
    yield Broken("unlike.json", b'[{"a": 1 x}, {"b": 2}, {"c": 3}]', "The next row after it cannot be identified")
    yield Broken("middle.json", b"[" + ROW + b",\n" + ROW[:-2] + b",\n" + ROW + b",\n" + ROW + b"]", ":2: the row", 3)
    yield Broken("trailing-comma.json", b"[" + ROW + b",,]", ":1: the row that starts here is not JSON", 1)
    yield Broken("more-after.json", b"[" + ROW + b"] " + ROW, ": there is more text after the closing ']'", 1)
    yield Broken("bad-lines.json", ROW + b"\n" + ROW[:-1] + b"\n" + ROW, ":2: not a JSON value", 2)
    yield Broken("wrapped.json", b'{"data": [' + ROW + b"]}", "whose field 'data' is not a row")
    yield Broken("a-text.json", b'"hello"', ":1: expected a JSON array ('['), found '\"'")
    yield Broken("deep.json", b"[" * 100_000, ":1: the row that starts here is not JSON: nested too deeply")
    yield Broken(
        "long-row.json",
        lambda: b"[" + ROW + b",\n" + _row(answer="x" * 50_000_000) + b"]",
        ":2: the row that starts here is not JSON, or longer than 16 MiB",
        1,
    )
    yield Broken("spaces.json", lambda: b" " * 30_000_000 + b"[", ": the JSON array is cut short")


def _fields() -> Iterator[Broken]:
    yield Broken("null-field.jsonl", _row(answer=None) + b"\n" + ROW, ":1: field 'answer' is empty", 1)
    yield Broken("blank-field.jsonl", _row(question=" \n ") + b"\n" + ROW, ":1: field 'question' is empty", 1)
    yield Broken(
        "number-for-system.jsonl", _row(system=42) + b"\n" + ROW, ":1: field 'system' is a number, expected text", 1
    )
    yield Broken("list-for-text.jsonl", _row(answer=["So."]), ":1: field 'answer' is an array, expected text", 0)
    yield Broken("nested-nulls.jsonl", _row(answer={"text": None}), ":1: field 'answer' is an object, expected text", 0)
    yield Broken("missing-field.jsonl", b'{"question": "Why?"}', ":1: no field 'answer'; the row has 'question'", 0)
    yield Broken("no-fields.jsonl", b"{}\n" + ROW, ":1: no field 'question'; the row has no fields", 1)
    yield Broken(
        "million-fields.jsonl",
        lambda: json.dumps(dict.fromkeys(map(str, range(1_000_000)), 0)).encode(),
        ":1: the row has 1,000,000 fields",
        0,
    )
    yield Broken(
        "unknown-fields.jsonl",
        lambda: json.dumps(dict.fromkeys("x" * 5000 + str(i) for i in range(900))).encode(),
        "and 890 more",
        0,
    )
    yield Broken(
        "open-think.jsonl", _row(answer="<think>Hmm. So."), ":1: the answer opens <think> but never closes it", 0
    )
    yield Broken("only-think.jsonl", _row(answer="<think>Hmm.</think> "), ":1: there is no answer after </think>", 0)
    yield Broken("two-thinks.jsonl", _row(answer="<think>A</think>B", reasoning="C"), ":1: reasoning is given twice", 0)
    yield Broken(
        "no-contexts.json",
        json.dumps({"1": FUNNY | {"CONTEXTS": []}, "2": FUNNY}).encode(),
        "field 'CONTEXTS' must be a non-empty list",
        1,
        "pubmedqa",
    )
    yield Broken(
        "odd-decision.json",
        json.dumps({"1": FUNNY | {"final_decision": "perhaps"}}).encode(),
        "final_decision 'perhaps', expected one of yes, no, maybe",
        0,
        "pubmedqa",
    )
    yield Broken(
        "no-cot.json",
        b'[{"Question": "Why?", "Complex_CoT": "", "Response": "So."}]',
        ":1: field 'Complex_CoT' is empty",
        0,
        "reasoning",
    )


def _talks() -> Iterator[Broken]:
    def talk(name: str, turns: object, says: str) -> Broken:
        return Broken(name, json.dumps({"messages": turns}).encode(), says, 0, "messages")

    user, assistant = TURNS
    yield talk("empty-talk.jsonl", [], ":1: field 'messages' must be a non-empty list")
    yield talk("text-for-talk.jsonl", "Why?", ":1: field 'messages' must be a non-empty list")
    yield talk("assistant-first.jsonl", [assistant, user], ":1: roles are assistant, user")
    yield talk("user-last.jsonl", [user, assistant, user], ":1: roles are user, assistant, user")
    yield talk("late-system.jsonl", [user, {"role": "system", "content": "S"}, assistant], ":1: roles are user, system")
    yield talk("unknown-role.jsonl", [{"role": "doctor", "content": "?"}, assistant], ":1 message 1: role 'doctor'")
    yield talk(
        "null-content.jsonl", [user, {"role": "assistant", "content": None}], ":1 message 2: field 'content' is empty"
    )
    yield talk("no-role.jsonl", [{"content": "?"}, assistant], ":1 message 1: no field 'role'")
    yield talk(
        "list-content.jsonl", [{"role": "user", "content": [{"type": "text"}]}, assistant], "part 1: no field 'text'"
    )
    yield talk(
        "null-turn.jsonl", [None, assistant], ":1 message 1: expected an object with role and content, found null"
    )
    yield talk("many-turns.jsonl", [user] * 10_000, "and 9988 more")
    turns = [{"from": "human", "value": "Why?"}, {"from": "narrator", "value": "He said."}]
    yield Broken(
        "narrator.jsonl", json.dumps({"conversations": turns}).encode(), ":1 turn 2: from 'narrator'", 0, "sharegpt"
    )
    yield Broken(
        "human-alone.jsonl", json.dumps({"conversations": turns[:1]}).encode(), ":1: roles are user", 0, "sharegpt"
    )


def _tables() -> Iterator[Broken]:
    head = b"question,answer\n"
    yield Broken(
        "open-quote.csv", head + b'Why?,So.\n"Why?,So.\nWhy?,So.\n', ":3: the record that starts here is not CSV", 2
    )
    yield Broken(
        "quote-inside.csv", head + b'Why?,So.\n"Why" it?,So.\n', ":3: the record that starts here is not CSV", 1
    )
    yield Broken(
        "open-quote-long.csv",
        lambda: head + b'"Why?,So.\n' + b"Why?,So.\n" * 150_000,
        "perhaps a closing quote is missing",
        150_000,
    )
    yield Broken("too-many.csv", head + b"Why?,So.,And?\nWhy?,So.\n", ":2: 3 fields, but the header names 2", 1)
    yield Broken("too-few.csv", head + b"Why?\nWhy?,So.\n", ":2: 1 fields, but the header names 2", 1)
    yield Broken("no-separator.csv", b"question\nWhy?\n", ":2: no field 'answer'; the row has 'question'", 0)
    yield Broken("sep-of-nothing.csv", b"sep=\x01\na\x01b\n1\x012\n", ":1: sep= names '\\x01'")
    yield Broken("twice.csv", b"question,answer,answer\na,b,c\n", ":1: the header names 'answer' more than once")
    yield Broken(
        "million-columns.csv",
        lambda: b",".join(b"c%d" % i for i in range(1_000_000)),
        ":1: the header names 1,000,000 fields",
    )
    yield Broken("header-only.csv", head, ": holds no rows")
    yield Broken("empty.csv", b"", ": the data file is empty")
    yield Broken("odd-cr.csv", head + b"Why?,So\rand so.\nWhy?,So.\n", ":2: the record that starts here is not CSV", 1)
    yield Broken("nul.csv", head + b"Why?,So.\nWhy?,S\0.\nWhy?,So.\n", ":3: contains NUL bytes", 2)
    yield Broken(
        "long-line.csv",
        lambda: head + b"Why?,So.\nWhy?," + b"x" * 40_000_000 + b"\nWhy?,So.\n",
        ":3: the line is longer than 16 MiB",
        2,
    )


def _xml() -> Iterator[Broken]:
    def document(inside: str, before: str = "") -> bytes:
        return f"<?xml version='1.0'?>{before}<Document id='1'><QAPairs>{inside}</QAPairs></Document>".encode()

    bomb = "<!DOCTYPE lol [<!ENTITY a 'ha'>" + "".join(
        f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    outside = "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    medquad = "medquad"
    yield Broken(
        "entity-bomb.xml", document(PAIR.replace("So.", "&i;"), bomb + "]>"), ": has a DOCTYPE or entities", 0, medquad
    )
    yield Broken(
        "external-entity.xml", document(PAIR.replace("So.", "&x;"), outside), ": has a DOCTYPE or entities", 0, medquad
    )
    yield Broken("cut-short.xml", document(PAIR)[:-20], ": not XML", 0, medquad)
    yield Broken("not-xml.xml", b"Why? So.", ": not XML", 0, medquad)
    yield Broken("other.xml", b"<html><body/></html>", ": is an HTML page", None, medquad)
    yield Broken("another.xml", b"<Articles><Article/></Articles>", ": expected MedQuAD's <Document>", 0, medquad)
    yield Broken(
        "no-answer.xml",
        document("<QAPair><Question>Why?</Question></QAPair>" + PAIR),
        ":1: field 'Answer' is empty",
        1,
        medquad,
    )
    yield Broken("no-pairs.xml", document(""), ": holds no rows", None, medquad)
    yield Broken("odd-encoding.xml", b"<?xml version='1.0' encoding='ebcdic-zz'?><Document/>", ": not XML", 0, medquad)
    yield Broken("deep.xml", b"<Document>" + b"<a>" * 200_000, ": not XML", 0, medquad)
    yield Broken("empty.xml", b"", ": the data file is empty", None, medquad)
    yield Broken("huge.xml", lambda: b"<Document>" + b" " * 20_000_000, ": longer than 16 MiB", None, medquad)


def _packed() -> Iterator[Broken]:
    def bomb() -> bytes:
        whole = io.BytesIO()
        with gzip.open(whole, "wb", 9) as file:
            for _ in range(400):
                file.write(b"x" * 1_000_000)
        return whole.getvalue()

    yield Broken("bomb.jsonl.gz", bomb, ": unpacks to more than 200 times its size")
    yield Broken("cut-short.json.gz", gzip.compress(b"[" + ROW)[:-9], ": is a damaged or truncated gzip file")
    yield Broken("cut-short.jsonl.gz", gzip.compress(ROW + b"\n" + ROW)[:-9], "truncated gzip file", 1)
    yield Broken("bad-checksum.jsonl.gz", gzip.compress(ROW)[:-8] + b"\0" * 8, ": is a damaged or truncated gzip file")
    yield Broken("cut-short.jsonl.zst", b"\x28\xb5\x2f\xfd" + ROW, ": is a damaged or truncated zstd file")
    yield Broken("twice.jsonl.gz", gzip.compress(gzip.compress(ROW)), ": is compressed twice")
    yield Broken("parquet.jsonl.gz", gzip.compress(b"PAR1"), ": is Parquet, compressed with gzip")
    yield Broken("what.gz", gzip.compress(ROW), ": the name ends in '.gz'")


def _parquet() -> Iterator[Broken]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(columns: dict[str, list[Any]]) -> bytes:
        whole = io.BytesIO()
        pq.write_table(pa.table(columns), whole)
        return whole.getvalue()

    good = table({"question": ["Why?"] * 3, "answer": ["So."] * 3})
    yield Broken("cut-short.parquet", good[:-30], ": not a Parquet file, or damaged")
    yield Broken("no-parquet.parquet", b"\xf0\x01" * 200, ": not a Parquet file, or damaged")
    yield Broken("empty.parquet", b"", ": not a Parquet file, or damaged")
    yield Broken("damaged.parquet", good[:10] + b"\xff" * 40 + good[50:], ": not a Parquet file, or damaged")
    yield Broken(
        "nulls.parquet",
        table({"question": ["Why?", None], "answer": ["So.", "So."]}),
        ":2: field 'question' is empty",
        1,
    )
    yield Broken(
        "bytes.parquet",
        table({"question": ["Why?"], "answer": [b"\xff"]}),
        ":1: field 'answer' is bytes, expected text",
        0,
    )
    yield Broken("nan.parquet", table({"question": ["Why?"], "answer": [float("nan")]}), ":1: field 'answer' is nan", 0)
    yield Broken("many-columns.parquet", lambda: table({f"c{i}": [0] for i in range(2000)}), ": has 2,000 columns")
    yield Broken("no-rows.parquet", table({"question": [], "answer": []}), ": holds no rows")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        print(f"{case.write(folder)}: {case.says}")
