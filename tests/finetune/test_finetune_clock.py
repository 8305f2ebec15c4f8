"""Templates that write the date: a run keeps the one on which it began, whatever the clock says when it goes on."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from finetune.config.schema import Recipe
from finetune.data.prepare import prepare
from finetune.tokens.clock import note, time_of
from finetune.train.inputs import Inputs, differences, read_inputs, reader_of, write_inputs
from gladstone.chat.guarded_template import GuardedTemplate
from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.errors import DataError
from tests.gladstone.chat_templates import CHATML, REASONING_FIELD
from tests.tiny_models import tiny_recipe

EVENING, NIGHT = datetime(2026, 11, 30, 23, 59, 58), datetime(2026, 12, 1, 0, 3, 1)
TODAY = "{{- '<|im_start|>system\\nToday: ' + strftime_now('%d %b %Y%TIME') + '<|im_end|>\\n' -}}" + CHATML
DAY, MINUTE = TODAY.replace("%TIME", ""), TODAY.replace("%TIME", " %H:%M")
ASKED = (Message("user", "What day is it?"),)


def recipe_of(base: Path, rows: Path, template: Path, **fields: Any) -> Recipe:
    return Recipe.model_validate(tiny_recipe(base, rows, base={"chat_template": str(template), **fields}))


@pytest.fixture
def template_file(tmp_path: Path) -> Path:
    path = tmp_path / "today.jinja"
    path.write_text(MINUTE, encoding="utf-8")
    return path


def call(recipe: Recipe, out: Path, began: datetime, *, resume: bool = False) -> Inputs:
    """What one call of a run trains on, written into its folder."""
    reader = reader_of(recipe, Silent(), time_of(recipe, out, resume=resume, began=began))
    inputs = read_inputs(reader, out, Silent(), prepare(recipe.data, out / "data", Silent(), reader.check))
    write_inputs(inputs)
    return inputs


def prompt(inputs: Inputs) -> str:
    return inputs.tokenizer.decode(list(inputs.sets["train"].examples[0].input_ids[:20]))


def test_a_run_that_goes_on_after_midnight_trains_with_the_date_on_which_it_began(
    tiny_base: Path, rows_file: Path, template_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, rows_file, template_file)
    first = call(recipe, tmp_path / "run", EVENING)
    later = call(recipe, tmp_path / "run", NIGHT, resume=True)
    assert "Today: 30 Nov 2026 23:59" in prompt(first)
    assert later.sets == first.sets
    assert later.identity == first.identity
    assert later.recipe.base.template_date == EVENING
    anew = call(recipe, tmp_path / "other", NIGHT)  # the token cache holds the evening's
    assert "Today: 01 Dec 2026 00:03" in prompt(anew)
    (told,) = differences(first.identity, anew.identity)
    assert told.startswith("base.template_date: ")


def test_the_recipes_own_date_comes_before_all_others(
    tiny_base: Path, rows_file: Path, template_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, rows_file, template_file, template_date="2025-01-02")
    call(recipe_of(tiny_base, rows_file, template_file), tmp_path, EVENING)
    assert time_of(recipe, tmp_path, resume=True, began=NIGHT) == datetime(2025, 1, 2)
    with pytest.raises(ValueError, match="template_date"):
        recipe_of(tiny_base, rows_file, template_file, template_date="2025-01-02T00:00:00+01:00")


def test_a_run_whose_template_has_no_clock_keeps_no_date(tiny_base: Path, rows_file: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(tiny_recipe(tiny_base, rows_file))
    inputs = call(recipe, tmp_path, EVENING)
    assert inputs.recipe == recipe
    assert note(inputs.template, inputs.recipe) is None
    assert differences(inputs.identity, call(recipe, tmp_path, NIGHT, resume=True).identity) == []
    dated = Recipe.model_validate(tiny_recipe(tiny_base, rows_file, base={"template_date": "2025-01-02"}))
    assert "changes nothing" in str(note(inputs.template, dated))


def test_a_run_of_an_older_version_goes_on_without_a_date_and_without_newer_options(
    tiny_base: Path, rows_file: Path, template_file: Path, tmp_path: Path
) -> None:
    inputs = call(recipe_of(tiny_base, rows_file, template_file), tmp_path, EVENING)
    older: dict[str, Any] = inputs.identity | {"recipe": Recipe.model_dump(inputs.recipe, mode="json")}
    del older["recipe"]["base"]["template_date"], older["recipe"]["data"]["train"]
    assert differences(older, inputs.identity) == []
    older["recipe"]["lora"]["rank"] = 4
    assert differences(older, inputs.identity) == ["lora.rank: 4 before, 8 now"]


@pytest.mark.parametrize(
    ("source", "writes"),
    [
        (DAY, True),
        (MINUTE, True),
        (CHATML, False),
        (REASONING_FIELD, False),
        ("{% macro date() %}{{ strftime_now('%Y') }}{% endmacro %}{{ date() }}", True),
        (
            "{% set d = '26 Jul' %}{% if strftime_now is defined %}{% set d = strftime_now('%S') %}{% endif %}{{ d }}",
            True,
        ),
        ("{% if messages[0].role == 'system' %}{{ strftime_now('%d') }}{% endif %}", True),
        ("{% if messages|length > 99 %}{{ strftime_now('%d') }}{% endif %}", False),
        ("{{ strftime_now('%d') and '' }}", False),
        ("{{ raise_exception(strftime_now('%d')) }}", False),
    ],
)
def test_whether_a_template_writes_the_time_is_seen_by_what_it_renders(source: str, writes: bool) -> None:
    assert ChatTemplate(source).depends_on_time is writes


def test_a_fixed_time_is_written_in_this_process_and_in_a_guarded_one(tmp_path: Path) -> None:
    fixed = ChatTemplate(MINUTE, now=EVENING).render(ASKED)
    assert "30 Nov 2026 23:59" in fixed
    assert f"{datetime.now():%Y}" in ChatTemplate(DAY).render(ASKED)
    with GuardedTemplate(MINUTE) as guarded:
        assert guarded.depends_on_time
        guarded.now = EVENING
        assert guarded.render(ASKED) == fixed
        guarded.now = None
        assert guarded.render(ASKED) != fixed


def test_other_clocks_are_no_part_of_the_sandbox() -> None:
    with pytest.raises(DataError, match="cannot render"):
        ChatTemplate("{{ now() }}").render(ASKED)
