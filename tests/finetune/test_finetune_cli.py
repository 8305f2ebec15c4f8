import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from finetune.cli import main
from finetune.config.load import load_recipe, recipe_names
from tests.tiny_models import medical_rows, tiny_recipe, write_rows_file


def finetune(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(result: Result) -> str:
    """The message of a command that exits with 1 and prints nothing else but how far it came."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    steps, error, message = f"\n{result.stderr}".partition("\nError: ")
    assert error
    assert all(
        line.endswith(" …") or ": done in " in line or ": stopped after " in line for line in steps.split("\n")[1:]
    )
    return message.rstrip("\n")


def test_recipes_lists_every_recipe_with_its_base() -> None:
    result = finetune("recipes")
    assert result.exit_code == 0
    for name in recipe_names():
        recipe = load_recipe(name, [])
        assert f"{name}\n    {recipe.description}\n    base {recipe.base.model}, about " in result.output


def test_a_missing_data_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    message = refused(finetune("run", "--data", path, "--out", tmp_path / "out"))
    assert message == f"{path}: no such data file."
    assert not (tmp_path / "out").exists()


def test_an_empty_data_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    message = refused(finetune("run", "--data", path, "--out", tmp_path / "out"))
    assert message == f"{path}: the data file is empty."


def test_a_row_without_a_needed_field_is_told_with_its_line_and_the_keys_it_has(tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in medical_rows()[:3]]
    rows[1] = json.dumps({"instruction": "What is this?", "output": "A row in another format."})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    message = refused(finetune("run", "--data", path, "--out", tmp_path / "out"))
    assert message == (
        f"bad rows; --skip-bad leaves them out: {path}:2: no field 'question'; the row has 'instruction', 'output'."
    )


def test_a_recipe_with_three_mistakes_tells_all_three(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    recipe = tiny_recipe(tmp_path, tmp_path / "rows.jsonl", lora={"rank": 0}, training={"schedule": "steep"})
    recipe["data"]["tests"] = 0.2
    path.write_text(yaml.safe_dump(recipe))
    message = refused(finetune("run", path, "--out", tmp_path / "out"))
    lines = message.splitlines()
    assert lines[0] == "recipe mine.yaml (3 problems):"
    assert sorted(lines[1:]) == [
        "  - data.tests: unknown field (did you mean 'test'?).",
        "  - lora.rank: expected greater than 0, found 0.",
        "  - training.schedule: expected 'linear', 'cosine', 'cosine_with_restarts', 'cosine_with_min_lr', 'polynomial', 'inverse_sqrt', 'warmup_stable_decay', 'constant' or 'constant_with_warmup', found 'steep'.",
    ]


@pytest.mark.parametrize("text", ["{% for m in messages %}{{ m.content }}", "{{ messages[0 }}"])
def test_a_template_that_does_not_compile_is_one_message(
    tmp_path: Path, tiny_base: Path, rows_file: Path, text: str
) -> None:
    (tmp_path / "broken.jinja").write_text(text)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump(tiny_recipe(tiny_base, rows_file, base={"chat_template": str(tmp_path / "broken.jinja")}))
    )
    result = finetune("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert errors[-1].startswith("Error: the chat template does not compile: ")
    assert errors[-1].endswith("(line 1).")
    assert "Traceback" not in result.output


def test_a_base_that_is_neither_folder_nor_hub_id_is_one_message(tmp_path: Path, rows_file: Path) -> None:
    result = finetune("run", "--data", rows_file, "--set", "base.model=./nowhere", "--out", tmp_path / "out")
    assert refused(result) == "base.model: './nowhere' is neither a folder nor a Hub id like 'owner/model'."


def test_a_folder_that_is_no_model_is_one_message(tmp_path: Path, rows_file: Path) -> None:
    result = finetune("run", "--data", rows_file, "--set", f"base.model={tmp_path}", "--out", tmp_path / "out")
    assert refused(result) == f"base.model: '{tmp_path}' is not a model folder: it has no usable config.json."


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_told_before_any_work(small_disk: Path, rows_file: Path) -> None:
    out = small_disk / "out"
    message = refused(finetune("run", "--data", rows_file, "--out", out))
    assert message == (
        f"{out}: no space: the adapter, its checkpoints, the tokenizer and the plots needs 300.0 MB, 1.0 MB are free. "
        "Free some space or choose another folder with --out."
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runn"], "No such command 'runn'"),
        (["run", "--nothing"], "No such option '--nothing'"),
        (["run", "one", "two"], "Got unexpected extra argument (two)"),
        (["run", "--data"], "Option '--data' requires an argument"),
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str], told: str) -> None:
    result = finetune(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_out_that_is_a_file_is_a_usage_error(tmp_path: Path, rows_file: Path) -> None:
    result = finetune("run", "--data", rows_file, "--out", rows_file)
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_too_few_rows_are_told(tmp_path: Path) -> None:
    path = write_rows_file(tmp_path / "rows.jsonl", medical_rows()[:2])
    message = refused(finetune("run", "--data", path, "--out", tmp_path / "out"))
    assert message.startswith("2 rows are too few to divide: the train set")


def test_data_check_tells_the_format_and_why_and_every_bad_row(tmp_path: Path) -> None:
    rows = [{"instruction": "Name it.", "input": "An organ.", "output": "The liver."}] * 3
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "Name it.", "output": []}]))
    result = finetune("data", "check", path)
    assert result.exit_code == 1
    assert result.stdout == (
        "format    alpaca  (the first 4 rows have instruction, output)\n"
        "rows      3 good, 1 bad\n"
        "with      several turns: 0, a system message: 0, reasoning: 0\n"
        "question  19 to 19 characters, 19 on average\n"
        "answer    10 to 10 characters, 10 on average\n"
        "note      special tokens and chat template of a base are not checked (--recipe NAME checks them)\n"
    )
    assert result.stderr == f"Error: {path}, read as 'alpaca': {path}:4: field 'output' is an array, expected text.\n"
    skipping = finetune("data", "check", path, "--skip-bad")
    assert (skipping.exit_code, skipping.stdout) == (0, result.stdout)
    assert skipping.stderr == f"left out: {path}:4: field 'output' is an array, expected text.\n"


def test_data_check_takes_columns_of_any_layout(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Frage,Antwort\nWarum?,Darum.\n", encoding="utf-8")
    result = finetune("data", "check", path, "--column", "question=Frage", "--column", "answer=Antwort")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("format    qa  (columns are given)\nrows      1 good, 0 bad\n")
    message = refused(finetune("data", "check", path, "--column", "question=Frage"))
    assert message == "columns: 'answer' is missing; name both question and answer."
    assert finetune("data", "check", path, "--column", "question").exit_code == 2


def test_data_check_refuses_an_unknown_encoding_as_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    result = finetune("data", "check", path, "--encoding", "klingon")
    assert result.exit_code == 2
    assert "'--encoding': unknown encoding 'klingon'" in result.output
    assert finetune("data", "check", path, "--encoding", "cp1252").exit_code == 0


def test_data_check_without_a_known_format_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Frage,Antwort\nWarum?,Darum.\n", encoding="utf-8")
    message = refused(finetune("data", "check", path))
    assert message.startswith(f"{path}: fits no known format; its first rows all have 'Antwort', 'Frage'. Name the")
