from pathlib import Path

import pytest

from finetune.data.section import Source
from finetune.recipe import DEFAULT_RECIPE, Recipe, field_help, load_recipe, recipe_names
from gladstone.errors import ConfigError
from gladstone.formats import read_conversations

WRONG_THREE_TIMES = """
name: mine
base: {model: "embedded:smollm2-135m-instruct", max_tokens: many}
data: {sources: [{path: rows.jsonl, format: csv}]}
training: {learning_rat: 1e-4}
"""


def test_without_a_name_the_demo_recipe_is_loaded() -> None:
    recipe = load_recipe(None, [])
    assert recipe.name == DEFAULT_RECIPE
    assert recipe.base.model == "embedded:smollm2-135m-instruct"
    assert recipe.training.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_whole(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.name == name
    assert recipe.description
    for source in recipe.data.sources:
        if source.path.startswith("sample:"):
            assert read_conversations(source.file(), source.format)


def test_three_mistakes_are_told_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG_THREE_TIMES)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), [])
    message = str(caught.value)
    assert "recipe wrong.yaml (3 problems):" in message
    assert "base.max_tokens: expected" in message
    assert "found 'many'" in message
    assert "unknown data format 'csv'; known: auto, qa, alpaca, messages" in message
    assert "training.learning_rat: unknown field (did you mean 'learning_rate'?)." in message


def test_set_changes_fields_and_leaves_the_rest() -> None:
    changed = load_recipe(None, ["training.learning_rate=5e-5", "lora.rslora=true", "name=other"])
    default = load_recipe(None, [])
    assert (changed.training.learning_rate, changed.lora.rslora, changed.name) == (5e-5, True, "other")
    assert changed.training.max_steps == default.training.max_steps
    assert changed.data == default.data


def test_set_is_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size: expected .*greater than 0, found 0"):
        load_recipe(None, ["training.batch_size=0"])
    with pytest.raises(ConfigError, match="expected FIELD=VALUE"):
        load_recipe(None, ["training.batch_size"])


def test_data_replaces_all_sources_of_the_recipe() -> None:
    recipe = load_recipe(None, [], ("mine.json", "alpaca"))
    assert recipe.data.sources == (Source(path="mine.json", format="alpaca"),)


def test_an_unknown_sample_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no sample called 'flashcard'; there are: flashcards, reasoning"):
        Source(path="sample:flashcard", format="qa").file()


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=f"no recipe 'nothing': neither a file nor one of .*{DEFAULT_RECIPE}"):
        load_recipe("nothing", [])


def test_shares_that_leave_no_training_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave less than a tenth"):
        load_recipe(None, ["data.test=0.45", "data.validation=0.46"])


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65])
def test_a_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name: expected"):
        load_recipe(None, [f"name={name!r}"])


def test_the_help_has_every_field_that_a_recipe_may_set() -> None:
    told = dict(field_help())
    values = Recipe.model_validate_json(load_recipe(None, []).model_dump_json()).model_dump()
    for section in ("base", "lora", "training"):
        for name in values[section]:
            assert told[f"{section}.{name}"]
    assert told["training.learning_rate"] == "peak learning rate  [0.0002]"
    assert told["data.cleaning.min_chars"].endswith("reasoning not counted  [10]")
    assert "(drop | cut prompt | cut)" in told["base.long_rows"]
    assert "data.sources[].weight" in told
