"""check, preview, prepare and run agree on the rows that a base refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config.schema import Recipe
from finetune.data.prepare import prepare, read_set
from finetune.data.sources import source_file
from finetune.data.summary import describe
from finetune.reports.data_check import check_rows
from finetune.reports.data_check import describe as describe_check
from finetune.reports.data_preview import Previewer, summary
from finetune.tokens.clock import now
from finetune.train.inputs import Inputs, read_inputs, reader_of
from gladstone.commands.progress import Silent
from gladstone.errors import DataError
from tests.tiny_models import medical_rows, tiny_recipe, write_rows_file

TOKEN = "<|im_end|>"
REASON = f"a text contains {TOKEN}, a special token"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Recipe:
    """Rows of which two hold a special token and three a system turn, which the template refuses."""
    rows = medical_rows()
    rows[3]["answer"] += f" {TOKEN}"
    rows[7]["question"] += f" {TOKEN}"
    for number in (10, 20, 30):
        rows[number]["system"] = "Be brief."
    (tmp_path / "plain.jinja").write_text(NO_SYSTEM)
    path = write_rows_file(tmp_path / "rows.jsonl", rows)
    return Recipe.model_validate(tiny_recipe(tiny_base, path, base={"chat_template": str(tmp_path / "plain.jinja")}))


def skipping(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"skip_bad": True})})


def inputs_of(recipe: Recipe, out: Path) -> Inputs:
    """What a run trains on."""
    reader = reader_of(recipe, Silent(), now())
    return read_inputs(reader, out, Silent(), prepare(recipe.data, out / "data", Silent(), reader.check))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_check_preview_prepare_and_run_count_the_same_rows(recipe: Recipe, tmp_path: Path) -> None:
    previewer = Previewer(recipe, Silent())
    list(previewer.previews(1))
    checked = check_rows(source_file(recipe.data.sources[0]), "qa", base=("tiny", previewer.labeller.check))
    found = inputs_of(skipping(recipe), tmp_path / "run")
    dropped = {reason: count for reason, count in found.summary.dropped.items() if reason in checked.refused}
    assert dict(checked.refused) == dict(previewer.refused) == dropped
    assert checked.refused[REASON] == 2
    (other,) = [reason for reason in checked.refused if reason != REASON]
    assert "no system turn here" in other
    assert checked.refused[other] == 3
    assert (checked.rows, checked.problems.count) == (35, 5)
    assert f"2 by tiny: {REASON}" in describe_check(checked)
    assert f"left out: 2 {REASON}" in summary(previewer)


def test_rows_left_out_are_in_the_opening_lines_and_in_dropped_jsonl_and_in_no_set(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    found = inputs_of(skipping(recipe), out)
    told = [line for line in lines(out / "data" / "dropped.jsonl") if line["reason"] == REASON]
    assert [line["source"].rpartition(":")[2] for line in told] == ["4", "8"]
    assert TOKEN in json.dumps(told[0]["before"])
    assert any(line.split()[:4] == ["left", "out", "2", "a"] and REASON in line
               for line in describe(found.summary, out / "data").splitlines())  # fmt: skip
    rows = [row for name in ("train", "validation", "test") for row in read_set(out / "data", name)]
    assert not any(TOKEN in message.content or message.role == "system" for row in rows for message in row.messages)
    again = inputs_of(skipping(recipe), tmp_path / "again")  # its tokens come from the cache
    assert again.summary.dropped == found.summary.dropped


def test_without_the_option_all_of_them_are_named_with_it_before_anything_is_trained(
    recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        inputs_of(recipe, tmp_path / "run")
    message = str(caught.value)
    for fact in ("5 problems", "rows.jsonl:4: ", "rows.jsonl:8: ", "rows.jsonl:31: ", TOKEN, "--skip-bad"):
        assert fact in message
    assert len(lines(tmp_path / "run" / "data" / "dropped.jsonl")) == 5
    assert not (tmp_path / "run" / "data" / "train.jsonl").exists()


def test_a_file_of_which_nothing_is_left_is_one_error_with_the_reasons(
    recipe: Recipe, tiny_base: Path, tmp_path: Path
) -> None:
    path = write_rows_file(tmp_path / "bad.jsonl", [row | {"system": "Be brief."} for row in medical_rows()])
    fields = tiny_recipe(tiny_base, path, base={"chat_template": recipe.base.chat_template}, data={"skip_bad": True})
    with pytest.raises(DataError, match=r"no row is left of 40: .*no system turn here 40"):
        inputs_of(Recipe.model_validate(fields), tmp_path / "run")


def test_a_set_of_its_own_file_loses_such_rows_too(recipe: Recipe, tiny_base: Path, tmp_path: Path) -> None:
    asked = [{"question": f"What is number {n}, the {word}?", "answer": f"It is the {word}."}
             for n, word in enumerate(("ulna", "tibia", "atlas", "talus"))]  # fmt: skip
    asked[2]["answer"] += TOKEN
    path = write_rows_file(tmp_path / "test.jsonl", asked)
    data = {"skip_bad": True, "test": str(path)}
    rows = write_rows_file(tmp_path / "train.jsonl")
    found = inputs_of(Recipe.model_validate(tiny_recipe(tiny_base, rows, data=data)), tmp_path / "run")
    assert found.summary.dropped[REASON] == 1
    assert found.summary.sets["test"] == 3


def test_a_check_that_asks_no_base_says_so(tmp_path: Path) -> None:
    told = describe_check(check_rows(write_rows_file(tmp_path / "rows.jsonl"), "qa"))
    assert "are not checked (--recipe" in told
    assert "--recipe" in told


def test_a_special_token_in_a_rendered_text_comes_with_the_format_that_reads_it(recipe: Recipe, tmp_path: Path) -> None:
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"
    path = write_rows_file(tmp_path / "text.jsonl", [{"text": text}])
    check = Previewer(recipe, Silent()).labeller.check
    (problem,) = check_rows(path, "text", base=("tiny", check)).problems.shown
    assert "ChatML" in problem
    assert "--format rendered" in problem
