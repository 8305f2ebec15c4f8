"""Cleaning as a whole: default settings damage no answer, and every change is recorded and reported."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.cli import main
from finetune.config.data import CleaningSection, DataSection
from finetune.data.cleaning.clean import clean
from finetune.data.cleaning.flaws import flaw
from finetune.data.prepare import Summary, describe, prepare, read_set
from gladstone.chat.messages import Conversation
from gladstone.commands.progress import Silent
from gladstone.errors import DataError
from gladstone.formats import Layout, find_layout, iter_conversations
from gladstone.rows import Problems, read_rows
from tests.tiny_models import medical_rows, write_rows_file

SECTION = CleaningSection()
INVISIBLE = re.compile("[\u0000-\u0007\u000e-\u001a\u007f\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")


def meaning(text: str) -> str:
    """What must be equal before and after: all but line ends, blank lines around, space at line ends, what is unseen."""
    lines = re.sub("\r\n?|[\u2028\u2029]", "\n", text)
    seen = unicodedata.normalize("NFC", INVISIBLE.sub("", unicodedata.normalize("NFC", lines)))
    trimmed = "\n".join(line.rstrip() for line in seen.split("\n"))
    return re.sub(r"\A\n+|\n+\Z", "", trimmed)


def cleaned(answer: str) -> str:
    """The answer that a file has, as it is trained on by default."""
    row = clean(Layout("qa").read({"question": "What is asked for?", "answer": answer}, "rows.jsonl:1"), SECTION).row
    assert flaw(row, SECTION) is None
    return row.answer.content


CODE = "def dose(weight):\n    if weight <= 0:\n        raise ValueError('weight')\n\n\n    return  weight * 2"
ANSWERS = {
    "code": CODE,
    "code alone": "    return x\n",
    "fenced": f"Like this:\n\n```python\n{CODE}  \n\n\n\n```\n\nDone.",
    "yaml": 'spec:\n  containers:\n    - name:   a\n      args: ["--x"]   # two\n\n\n    - name: b',
    "table": "| drug   | dose |\n|--------|-----:|\n| a      |      |\n|        |    5 |",
    "tsv": "drug\tdose\troute\na\t\t\n\t5\t\n",
    "html": '<ul>\n  <li class="x">one &amp; two</li>\n  <li>&nbsp;</li>\n</ul>\n<!-- end -->',
    "xml": '<?xml version="1.0"?>\n<a>\n  <b c="d">  &lt;e/&gt; </b>\n  <code>x</code>\n</a>',
    "diff": "--- a\n+++ b\n@@ -1,2 +1,2 @@\n context\n-    old\n+    new",
    "poem": "  The one,\n      the other,\n\n\n\n  the third.",
    "hard break": "first line  \nsecond line",
    "cjk": "请多喝水。\u3000\u3000注意休息：体温＞38.5℃ 时就医。",
    "emoji": "👩\u200d⚕️ 🏳️\u200d🌈 \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤\ufe0f 1\ufe0f\u20e3",
    "persian": "می\u200cخواهم، نمی\u200cدانم.",
    "devanagari": "क्\u200dष और क्\u200cष, ड़",
    "hebrew": "\u202bשלום\u202c (abc) \u200fמה\u200e",
    "khmer": "ភាសា\u200bខ្មែរ\u200bគឺ",
    "latex": "\\begin{aligned}\n  a &= b \\\\\n  c &< d\n\\end{aligned}",
    "hl7": "MSH|^~\\&|A\rPID|1||2\r",
    "think": "<thought>keep  this</thought>",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_stays_as_it_is(kind: str) -> None:
    assert meaning(cleaned(ANSWERS[kind])) == meaning(ANSWERS[kind])


@pytest.mark.parametrize("kind", ["code", "code alone", "fenced", "yaml", "table", "tsv", "html", "emoji", "persian",
                                  "hebrew", "khmer", "hard break"])  # fmt: skip
def test_what_needs_every_character_keeps_them(kind: str) -> None:
    assert cleaned(ANSWERS[kind]) == ANSWERS[kind].removesuffix("\n")


invisible = st.sampled_from("\u00ad\u200b\u2060\ufeff\u202a\u202c\u0007\u200c\u200d\u200e\u2066\ufe0f")
space = st.sampled_from([" ", "  ", "\t", "\u00a0", "\u3000", "\n", "\r\n", "\r", "\n\n\n", "\n    ", "\u2028"])
fences = st.sampled_from(
    ["```\n", "```python\n", "\n```\n", "~~~\n", "`", "<pre>", "</pre>", "<code>", "</code>", "- "]
)
words = st.one_of(
    st.sampled_from([*ANSWERS.values()]), st.text(max_size=12), st.sampled_from(["a", "e\u0301", "é", "&lt;"])
)
texts = st.lists(st.one_of(words, words, space, invisible, fences), min_size=1, max_size=12).map("".join)


@settings(max_examples=400)
@given(texts)
def test_by_default_no_answer_changes_beyond_what_nobody_sees(text: str) -> None:
    if not meaning(text).strip() or text.lstrip().startswith("<think>"):
        return
    assert meaning(cleaned(text)) == meaning(text)


@settings(max_examples=100)
@given(texts, st.sampled_from(["```", "~~~"]))
def test_code_in_a_fence_stays_to_the_last_space(text: str, fence: str) -> None:
    code = re.sub("\r\n?", "\n", text).replace("`", "'").replace("~", "-").encode("utf-8", "replace").decode()
    assert f"{fence}py\n{code}\n{fence}\n" in cleaned(f"See:\n\n{fence}py\n{code}\n{fence}\n\nThat is all.")


def shared_files() -> list[Path]:
    """Real rows and reported ones, where they lie beside the repository."""
    above = (folder / "shared" for folder in Path(__file__).parents)
    shared = next((folder for folder in above if (folder / "data").is_dir()), None)
    if shared is None:
        return []
    named = [*(shared / "data").glob("*.json"), *(shared / "data" / "medquad").glob("*")]
    return sorted([*named, *(shared / "reports" / "rows").iterdir(), *(shared / "reports" / "texts").glob("*.jsonl")])


def leaves(value: Any) -> Iterator[str]:
    """Every text in a row."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif value is not None:
        yield str(value)


def answers_in(path: Path) -> Iterator[tuple[Conversation, list[str]]]:
    """The rows of a file as they are read, with the texts that the file has for them."""
    try:
        layout = find_layout(path, "auto")
        raw = {source: list(map(meaning, leaves(row))) for row, source in read_rows(path, Problems())}
        for row in iter_conversations(path, layout, Problems()):
            if row.source in raw:
                yield row, raw[row.source]
    except DataError:  # preference rows, a file that cannot be read: no answers
        return


@pytest.mark.skipif(not shared_files(), reason="the shared rows are not here")
def test_no_answer_of_the_shared_rows_changes_by_default() -> None:
    counts: Counter[str] = Counter()
    for path in shared_files():
        for row, written in answers_in(path):
            kept = clean(row, SECTION).row
            assert flaw(kept, SECTION) is None, row.source
            for message in kept.messages:
                if message.role == "assistant" and message.content:
                    counts[path.name] += 1
                    found = meaning(message.content)
                    assert any(found == each or found.endswith(f". {each}") for each in written if each), row.source
    assert len(counts) >= 20
    assert counts.total() >= 5000


ODD = {"question": "What is it?\u200b", "answer": "It is the cafe\u0301.  \nSo."}


def finetune(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def prepared(path: Path, folder: Path, **cleaning: Any) -> Summary:
    chosen = DataSection.model_validate({"sources": [{"path": str(path)}], "cleaning": cleaning})
    return prepare(chosen, folder, Silent())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_every_change_is_written_with_before_and_after(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [*medical_rows(), ODD])
    summary = prepared(path, tmp_path / "data")
    assert summary.changed == {"unicode": 1}
    (line,) = lines_of(tmp_path / "data" / "changed.jsonl")
    assert (line["source"], line["steps"]) == (f"{path}:41", ["unicode"])
    assert [turn["content"] for turn in line["before"]["messages"]] == list(ODD.values())
    assert [turn["content"] for turn in line["after"]["messages"]] == ["What is it?", "It is the café.  \nSo."]
    told = describe(summary, tmp_path / "data")
    assert re.search(r"changed +1  unicode: .*changed\.jsonl", told)


def test_what_is_left_out_is_written_as_it_was_read_and_as_it_became(tmp_path: Path) -> None:
    rows = [*medical_rows(), {"question": "What is <b>it</b>?", "answer": "<br>&nbsp;"}]
    summary = prepared(write_rows_file(tmp_path / "rows.jsonl", rows), tmp_path / "data", html="remove")
    assert summary.dropped == {"empty": 1}
    (line,) = lines_of(tmp_path / "data" / "dropped.jsonl")
    assert line["before"]["messages"][1]["content"] == "<br>&nbsp;"
    assert line["after"]["messages"][0]["content"] == "What is it?"
    assert line["after"]["messages"][1]["content"] == ""


def test_a_failing_command_leaves_the_records_and_names_them(tmp_path: Path) -> None:
    rows = [ODD, {"question": "What is the liver for?", "answer": "x" * 5321}]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    result = finetune("data", "prepare", path, "--out", tmp_path / "data", "--set", "cleaning.max_chars=2000")
    assert result.exit_code == 1
    assert "too few to divide" in result.output
    assert str(tmp_path / "data" / "dropped.jsonl") in result.output
    (line,) = lines_of(tmp_path / "data" / "dropped.jsonl")
    assert "3,321 more than data.cleaning.max_chars=2000" in line["detail"]
    assert len(line["before"]["messages"][1]["content"]) == 5321
    assert [each["source"] for each in lines_of(tmp_path / "data" / "changed.jsonl")] == [f"{path}:1"]
    assert not list((tmp_path / "data").glob(".*"))


def test_what_is_left_as_it_is_is_told_with_count_place_and_option(tmp_path: Path) -> None:
    note = "Refer the caller to the emergency department immediately."
    rows: list[dict[str, str]] = [dict(row, answer=f"{row['answer']} {note}") for row in medical_rows()]
    rows += [
        {"question": "How is it set?", "answer": "<b>So</b>  &amp; so."},
        {"question": "it is the case that it was so", "answer": "It is the case that it was so."},
        {"question": "Why?", "answer": "So."},
        {"question": "What does it do?", "answer": "It filters blood. It also makes bile, and it stores the"},
    ]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    every = ("--set", "duplicates.similarity=null")
    result = finetune("data", "prepare", path, "--out", tmp_path / "data", *every)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("kept as is")]
    for line, (name, option, place) in zip(
        lines,
        [
            ("html", "--set data.cleaning.html=remove", "rows.jsonl:41"),
            ("whitespace", "--set data.cleaning.whitespace=remove", "rows.jsonl:41"),
            ("echo", "--set data.cleaning.echoes=drop", "rows.jsonl:42"),
            ("too short", "--set data.cleaning.min_chars=10", "rows.jsonl:43"),
            ("cut", "--set 'data.cleaning.cut_answers=drop sure'", "rows.jsonl:44"),
            ("boilerplate", "--set data.cleaning.boilerplate=remove", "rows.jsonl:1, 2, 3, …"),
        ],
        strict=True,
    ):
        assert re.search(rf"^kept as is +\d+  {name}: ", line)
        assert option in line
        assert place in line
    assert f"{note!r} ends 40" in result.output
    written = [row for name in ("train", "validation", "test") for row in read_set(tmp_path / "data", name)]
    assert len(written) == 44
    assert sum(row.answer.content.endswith(note) for row in written) == 40


@pytest.mark.parametrize("prefix", ["", "data."])
def test_an_option_works_as_it_is_told(tmp_path: Path, prefix: str) -> None:
    rows = [*medical_rows(), {"question": "How is it set?", "answer": "<b>So</b> &amp; so."}]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    option = f"{prefix}cleaning.html=remove"
    result = finetune("data", "prepare", path, "--out", tmp_path / "data", "--set", option)
    assert result.exit_code == 0, result.output
    assert re.search(r"changed +1  html: ", result.output)
    (line,) = lines_of(tmp_path / "data" / "changed.jsonl")
    assert line["after"]["messages"][1]["content"] == "So & so."


@pytest.mark.parametrize("privacy", ["mask", "drop"])
def test_no_record_names_a_person_who_must_not_be_named(tmp_path: Path, privacy: str) -> None:
    rows = [
        *medical_rows(),
        {"question": "How do I reach her?", "answer": "Write to jane\u200b@example.org for that."},
        {"question": "And where?", "answer": "At joe&#64;example.org, it is said. It also is the"},
    ]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    cleaning = {"privacy": privacy, "html": "remove", "cut_answers": "drop sure"}
    summary = prepared(path, tmp_path / "data", **cleaning)
    assert summary.dropped["cut"] == 1
    for name in ("changed.jsonl", "dropped.jsonl", "personal.jsonl"):
        text = (tmp_path / "data" / name).read_text(encoding="utf-8")
        assert "jane" not in text
        assert "joe" not in text


def test_the_step_of_privacy_is_counted_and_its_choices_are_told(tmp_path: Path) -> None:
    rows = [*medical_rows(), {"question": "How do I reach her?", "answer": "Write to jane@example.org for that."}]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    told = describe(prepared(path, tmp_path / "told"), tmp_path / "told")
    assert re.search(r"personal +1  e-mail 1; --set data\.cleaning\.privacy=mask .*personal\.jsonl", told)
    masked = describe(prepared(path, tmp_path / "masked", privacy="mask"), tmp_path / "masked")
    assert re.search(r"changed +1  privacy: ", masked)
    assert "privacy=mask" not in masked
    dropped = describe(prepared(path, tmp_path / "dropped", privacy="drop"), tmp_path / "dropped")
    assert re.search(r"left out +1  personal data \(data\.cleaning\.privacy=drop\)", dropped)


def test_preview_shows_what_changed_and_what_would(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [ODD, {"question": "How is it?", "answer": "<b>So</b>, so."}])
    result = finetune("data", "preview", path, "--rows", 2, "--set", f"base.model={tiny_base}")
    assert result.exit_code == 0, result.output
    assert "changed by unicode:" in result.output
    assert "− 1 user: What is it?\\u200b" in result.output
    assert "+ 1 user: What is it?" in result.output
    assert "kept as is: html: HTML tags or entities; --set data.cleaning.html=remove" in result.output
    assert "unicode 1, whitespace 1, html 1" in result.output


def test_preview_shows_a_masked_row_as_it_is_trained_on(tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"question": "How do I reach her?", "answer": "Write to jane@example.org for that."}]
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    options = ("--set", f"base.model={tiny_base}", "--set")
    masked = finetune("data", "preview", path, *options, "data.cleaning.privacy=mask")
    assert "⟦Write to [e-mail] for that." in masked.output
    dropped = finetune("data", "preview", path, *options, "data.cleaning.privacy=drop")
    assert "left out: personal data" in dropped.output


def test_the_page_tells_what_was_left_as_it_is(tmp_path: Path, tiny_base: Path) -> None:
    rows = [*medical_rows(), {"question": "How is it?", "answer": "<b>So</b>, so."}]
    path, out = write_rows_file(tmp_path / "rows.jsonl", rows), tmp_path / "report"
    options = ("--set", f"base.model={tiny_base}", "--set", "data.cleaning.max_chars=40")
    result = finetune("data", "report", path, "--out", out, *options)
    assert result.exit_code == 0, result.output
    noted = json.loads((out / "report.json").read_text(encoding="utf-8"))["summary"]["noted"]
    assert noted["html"] | {"first": []} == {
        "rows": 1, "first": [], "found": "HTML tags or entities", "option": "data.cleaning.html=remove"
    }  # fmt: skip
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "--set &#34;data.cleaning.html=remove&#34;" in page or '--set "data.cleaning.html=remove"' in page
    assert "too long (data.cleaning.max_chars=40, the longest" in page
