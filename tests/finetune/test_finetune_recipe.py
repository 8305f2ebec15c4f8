from pathlib import Path

import pytest

from finetune.config.data import Source
from finetune.config.field_help import field_help
from finetune.config.load import (
    DEFAULT_RECIPE,
    DEMO_RECIPE,
    EMBEDDED_RECIPES,
    load_recipe,
    read_recipe,
    recipe_names,
    recipe_text,
)
from finetune.config.schema import Recipe, TrainingSection
from finetune.data.sources import source_file
from gladstone.errors import ConfigError
from gladstone.formats import read_conversations

FLASHCARDS = "smollm2-135m-medical"  # has max_steps
WRONG_THREE_TIMES = """
name: mine
base: {model: "embedded:smollm2-135m-instruct", max_tokens: many}
data: {sources: [{path: rows.jsonl, format: csv}]}
training: {learning_rat: 1e-4}
"""


def test_without_a_name_the_demo_recipe_is_loaded() -> None:
    recipe = load_recipe(None, [])
    assert recipe.name == DEMO_RECIPE
    assert recipe.base.model == "embedded:smollm2-135m-instruct"
    assert recipe.training.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_whole(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.name == name
    assert recipe.description
    for source in recipe.data.sources:
        if source.path.startswith("sample:"):
            assert read_conversations(source_file(source), source.format)


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


def test_a_users_rows_are_trained_for_one_whole_epoch_and_divided_as_any() -> None:
    read = read_recipe(None, [], ("some/Triage notes.jsonl.gz", "auto"))
    recipe = read.recipe
    assert read.notes == ()
    assert recipe.name == "smollm2-135m-Triage-notes"
    assert (recipe.training.max_steps, recipe.training.total_steps(225)) == (None, 225)
    assert recipe.training.evaluations == TrainingSection().evaluations
    assert (recipe.data.validation, recipe.data.test) == (0.1, 0.1)


@pytest.mark.parametrize("name", EMBEDDED_RECIPES)
def test_a_recipe_for_the_embedded_rows_named_for_other_rows_gives_way_and_says_so(name: str) -> None:
    for overrides, data in (([], ("mine.jsonl", "auto")), (["data.sources=[{path: mine.jsonl}]"], None)):
        read = read_recipe(name, overrides, data)
        assert read.recipe.training.max_steps is None
        assert read.recipe.data.sources == (Source(path="mine.jsonl"),)
        assert any(name in note and DEFAULT_RECIPE in note for note in read.notes)


def test_sizes_of_a_published_data_set_are_not_put_on_a_users_rows_and_it_is_said() -> None:
    read = read_recipe("flan-t5-medical", ["data.test=50"], ("mine.jsonl", "auto"))
    section = read.recipe.data
    assert (section.max_rows, section.validation, section.test) == (None, 0.1, 50)
    assert read.recipe.name == "flan-t5-medical-mine"
    assert read.notes == (
        "data.max_rows=2000, data.validation=100 of recipe flan-t5-medical are meant for its own rows and not used.",
    )
    assert read_recipe("flan-t5-medical", ["data.max_rows=2000"]).notes == ()


def test_a_users_own_file_keeps_its_steps_and_its_name_for_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(recipe_text(FLASHCARDS).replace("name: smollm2-135m-medical", "name: own"))
    read = read_recipe(str(path), [], ("mine.jsonl", "auto"))
    assert (read.recipe.name, read.recipe.training.max_steps, read.notes) == ("own", 12, ())


def test_the_length_that_was_set_last_holds_and_it_is_said() -> None:
    longer = read_recipe(FLASHCARDS, ["training.epochs=3"])
    assert (longer.recipe.training.epochs, longer.recipe.training.max_steps) == (3, None)
    (note,) = longer.notes
    assert "training.max_steps=12" in note
    assert "training.epochs=3" in note
    shorter = read_recipe(None, ["training.max_steps=7"], ("mine.jsonl", "auto"))
    assert (shorter.recipe.training.epochs, shorter.recipe.training.max_steps) == (None, 7)
    (note,) = shorter.notes
    assert "training.epochs=1.0" in note
    assert "training.max_steps=7" in note


def test_two_lengths_in_one_command_are_refused_unless_one_is_null() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.epochs=3 and training\.max_steps=5 both set the length of the training"
    ):
        load_recipe(None, ["training.max_steps=5", "training.epochs=3"])
    assert load_recipe(None, ["training.max_steps=null", "training.epochs=3"]).training.total_steps(10) == 30


def test_of_two_lengths_in_a_file_the_steps_hold_as_they_always_did_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(recipe_text(FLASHCARDS).replace("max_steps: 12", "max_steps: 12\n  epochs: 3"))
    read = read_recipe(str(path), [])
    assert read.recipe.training.total_steps(100) == 12
    assert "training.epochs=3 of recipe both.yaml is not used" in read.notes[0]


def test_rows_that_are_named_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data and --set data\.sources both name the rows"):
        load_recipe(None, ["data.sources=[{path: other.jsonl}]"], ("mine.jsonl", "auto"))


def test_an_unknown_sample_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'flashcard'.*flashcards, reasoning"):
        source_file(Source(path="sample:flashcard", format="qa"))


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
    assert told["data.cleaning.min_chars"].endswith("[null]")
    assert "(drop | cut prompt | cut)" in told["base.long_rows"]
    assert "data.sources[].weight" in told
