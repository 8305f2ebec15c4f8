from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from gladstone.config import Config, apply_overrides, build_config, parse_yaml, read_yaml
from gladstone.errors import ConfigError


class Source(Config):
    path: str
    format: str = "qa"


class Training(Config):
    learning_rate: float = Field(1e-4, gt=0)
    epochs: int = 1
    mixed: bool = False


class Recipe(Config):
    name: str
    training: Training = Training()
    sources: tuple[Source, ...] = ()
    backup: Source | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"{name!r} must not hold a slash")
        return name


def problems(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(Recipe, data, "recipe.yaml")
    return str(caught.value)


def test_three_mistakes_are_reported_in_one_message() -> None:
    message = problems({"name": "a/b", "training": {"learning_rat": 1, "epochs": "many"}})
    assert message.splitlines()[0] == "recipe.yaml (3 problems):"
    assert "  - name: 'a/b' must not hold a slash" in message.splitlines()
    assert "  - training.learning_rat: unknown field (did you mean 'learning_rate'?)." in message.splitlines()
    assert "  - training.epochs: expected a valid integer" in message
    assert ", found 'many'." in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "recipe.yaml: name: missing."),
        ({"name": "a", "trainning": {}}, "recipe.yaml: trainning: unknown field (did you mean 'training'?)."),
        ({"name": "a", "zzz": 1}, "recipe.yaml: zzz: unknown field (known: name, training, sources, backup)."),
        (
            {"name": "a", "sources": [{"path": "x", "formt": "qa"}]},
            "recipe.yaml: sources.0.formt: unknown field (did you mean 'format'?).",
        ),
        (
            {"name": "a", "backup": {"path": "x", "pth": "y"}},
            "recipe.yaml: backup.pth: unknown field (did you mean 'path'?).",
        ),
        (
            {"name": "a", "training": {"learning_rate": 0}},
            "recipe.yaml: training.learning_rate: expected greater than 0, found 0.",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_field(data: dict[str, Any], message: str) -> None:
    assert problems(data) == message


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("epochs", "5", "'5'"),
        ("epochs", True, "True"),
        ("epochs", 1.5, "1.5"),
        ("learning_rate", True, "True"),
        ("learning_rate", "1e-4", "'1e-4'"),
        ("mixed", "off", "'off'"),
        ("mixed", 1, "1"),
        ("epochs", None, "None"),
        ("epochs", [1], "[1]"),
    ],
)
def test_a_value_of_another_kind_is_refused_and_never_converted(field: str, value: object, found: str) -> None:
    message = problems({"name": "a", "training": {field: value}})
    assert message.startswith(f"recipe.yaml: training.{field}: expected a valid ")
    assert message.endswith(f", found {found}.")


def test_a_whole_number_is_a_number_and_a_date_is_a_text() -> None:
    recipe = build_config(Recipe, parse_yaml("name: 2026-10-01\ntraining: {learning_rate: 1}"), "recipe.yaml")
    assert recipe.training.learning_rate == 1.0
    assert recipe.name == "2026-10-01"


def test_a_field_named_by_a_date_is_refused() -> None:
    assert problems(parse_yaml("2026-10-01: a")) == "recipe.yaml: the name of every field must be text."


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    recipe = build_config(Recipe, {"name": "a"}, "recipe.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("09", 9),
        ("0x10", 16),
        ("1_000", 1000),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ("true", True),
        ("~", None),
    ],
)
def test_a_scalar_is_read_as_people_mean_it(text: str, value: object) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 1: 'a' is given twice."),
        ("top:\n  x: 1\n  x: 2", "line 2: 'x' is given twice."),
        ("a: [1, 2", "line 1, column 9: not YAML: expected ',' or ']', but got '<stream end>'."),
        ("a: b: c", "line 1, column 5: not YAML: mapping values are not allowed here."),
        ("{[1]: 2}", "line 1, column 2: not YAML: found unhashable key."),
        ("a: 2026-13-45", "not YAML: month must be in 1..12."),
    ],
)
def test_text_that_is_not_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['true']", "a: \0", "[" * 5000, "a: " + "1" * 5000, "a: &x [*x"]
)
def test_hostile_yaml_is_a_message_and_no_crash(text: str) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2", "line 1: 'a' is given twice."),
        (b"- a\n- b", "expected 'field: value' lines, found list."),
        (b"", "expected 'field: value' lines, found NoneType."),
        (b"a: caf\xe9", "cannot be read: not UTF-8."),
        (None, "cannot be read: No such file or directory."),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


def test_an_override_sets_one_field_and_leaves_the_original_alone() -> None:
    data = {"name": "a", "training": {"epochs": 1, "deep": {"x": 1}}}
    changed = apply_overrides(data, ["training.learning_rate=1e-4", "training.deep.x=2", "new.section=[1, two]"])
    assert changed == {
        "name": "a",
        "training": {"epochs": 1, "deep": {"x": 2}, "learning_rate": 1e-4},
        "new": {"section": [1, "two"]},
    }
    assert data == {"name": "a", "training": {"epochs": 1, "deep": {"x": 1}}}


def test_the_last_of_two_overrides_wins_and_a_value_may_hold_an_equals_sign() -> None:
    assert apply_overrides({}, ["name=a", "name=b=c"]) == {"name": "b=c"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name", "--set 'name': expected FIELD=VALUE, for example training.learning_rate=1e-4."),
        ("=5", "--set '=5': expected FIELD=VALUE, for example training.learning_rate=1e-4."),
        ("name.first=x", "--set 'name.first=x': 'name' is a value, not a section."),
        ("name=[1", "--set 'name=[1': line 1, column 3: not YAML: expected ',' or ']', but got '<stream end>'."),
    ],
)
def test_an_override_that_cannot_be_used_is_refused_by_its_text(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"name": "a"}, [override])
    assert str(caught.value) == message


names = st.text(min_size=1).filter(lambda text: "/" not in text)
recipes = st.builds(
    Recipe,
    name=names,
    training=st.builds(
        Training,
        learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        epochs=st.integers(-(2**63), 2**63),
        mixed=st.booleans(),
    ),
    sources=st.lists(st.builds(Source, path=st.text(), format=st.text()), max_size=3).map(tuple),
    backup=st.none() | st.builds(Source, path=st.text()),
)


@given(recipe=recipes)
def test_a_configuration_written_as_yaml_reads_back_as_itself(recipe: Recipe) -> None:
    text = yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=False)
    assert build_config(Recipe, parse_yaml(text), "round trip") == recipe
