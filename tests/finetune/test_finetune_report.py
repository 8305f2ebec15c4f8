import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from finetune.cli import main
from finetune.reports.data_report import histogram, language
from tests.tiny_models import medical_rows, write_rows_file

NO_SHORT = ("--set", "data.cleaning.min_chars=10")


def finetune(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def rows_with_flaws(folder: Path) -> Path:
    rows = [dict(row, reasoning="Think.") for row in medical_rows()]
    rows += [dict(row, answer=row["answer"].upper()) for row in rows[:3]]
    rows.append({"question": "Is <script>alert(1)</script> shown as text?", "answer": "It is & it must be: 5 < 6."})
    rows.append({"question": "Why?", "answer": "So."})
    return write_rows_file(folder / "rows.jsonl", rows)


def test_the_report_tells_what_is_in_the_rows(tmp_path: Path, tiny_base: Path) -> None:
    out = tmp_path / "report"
    base = f"base.model={tiny_base}"
    result = finetune(
        "data", "report", rows_with_flaws(tmp_path), "--out", out, "--set", base, "--set", "data.cleaning.min_chars=10",
        "--loss", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "report.json").read_text())
    assert found["summary"]["dropped"] == {"too short": 1, "near duplicate": 3}
    assert sum(found["summary"]["sets"].values()) == 41
    assert sum(found["lengths"]["tokens"]["counts"]) == 41
    assert sum(found["lengths"]["reasoning characters"]["counts"]) == 40
    assert 0 < found["scored_share"] < 1
    assert found["longer_than"]["2048"] == 0
    assert dict(found["words"])["keeps"] == 8
    assert found["leaks"] == {}
    assert [each["detail"] for each in found["duplicates"]] == [
        f"of rows.jsonl:{line}, similarity 1.00" for line in (1, 2, 3)
    ]
    losses = [each["loss"] for each in found["losses"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4
    page = (out / "report.html").read_text()
    assert "<script>" not in page
    assert re.search(r"<mark>&lt;think&gt;\nThink.", page)
    assert not re.search(r"""(?:src|href)=["']?http""", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_hostile_row_stays_text_on_the_page(tmp_path: Path, tiny_base: Path) -> None:
    rows = [
        {"question": f"<img src=x onerror=alert({n})> {row['question']}", "answer": row["answer"]}
        for n, row in enumerate(medical_rows())
    ]
    out = tmp_path / "report"
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    result = finetune(
        "data", "report", path, "--out", out, "--set", f"base.model={tiny_base}", "--set", "data.cleaning.html=false"
    )
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_preview_marks_what_is_scored_and_counts_what_is_cut(tmp_path: Path, tiny_base: Path) -> None:
    path = rows_with_flaws(tmp_path)
    result = finetune("data", "preview", path, "--rows", 2, "--set", f"base.model={tiny_base}", *NO_SHORT)
    assert result.exit_code == 0, result.output
    assert result.output.count("⟦<think>\nThink.\n</think>\n\n") == 2
    assert "<|im_start|>user\nWhat does the heart mainly do?<|im_end|>" in result.output
    assert re.search(r"── 1  .*rows\.jsonl:1  \d+ tokens, \d+ scored in 1 turn\n", result.output)
    assert "of 45 rows 1 left out, 0 cut" in result.output


@pytest.mark.parametrize(("policy", "told"), [("drop", "45 left out, 0 cut"), ("cut", "1 left out, 44 cut")])
def test_preview_tells_the_fate_of_long_rows(tmp_path: Path, tiny_base: Path, policy: str, told: str) -> None:
    limits = ("--set", "base.max_tokens=48", "--set", f"base.long_rows={policy}", "--set", f"base.model={tiny_base}")
    result = finetune("data", "preview", rows_with_flaws(tmp_path), "--rows", 1, *limits, *NO_SHORT)
    assert result.exit_code == 0, result.output
    assert "tokens, more than base.max_tokens 48" in result.output
    assert told in result.output


def test_preview_shows_control_characters_by_name(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [{"question": "What is \x1b[2J this?", "answer": "An escape."}])
    settings = ("--set", f"base.model={tiny_base}", "--set", "data.cleaning.unicode=false")
    result = finetune("data", "preview", path, *settings)
    assert "\x1b" not in result.output
    assert "\\x1b[2J" in result.output


def test_a_histogram_holds_every_length() -> None:
    made = histogram([*range(200), 5000], "x")
    assert sum(made.counts) == 201
    assert (made.median, made.longest) == (100, 5000)
    assert made.edges[0] == 0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The liver makes bile and filters the blood of the gut.", "en"),
        ("Die Leber bildet Galle und filtert das Blut aus dem Darm.", "de"),
        ("El hígado produce bilis y filtra la sangre del intestino.", "es"),
    ],
)
def test_a_language_is_guessed(text: str, code: str) -> None:
    assert language(text) == code


def test_preview_tells_of_rows_that_cannot_be_read(tmp_path: Path, tiny_base: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", [*medical_rows(), {"question": "What is it?"}])
    result = finetune("data", "preview", path, "--rows", 1, "--set", f"base.model={tiny_base}")
    assert result.exit_code == 0, result.output
    assert "of 40 rows 0 left out, 0 cut, 1 more are unreadable; base" in result.output
