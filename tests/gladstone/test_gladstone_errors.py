import pytest

from gladstone.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    GladstoneError,
    ToolError,
    UnsupportedError,
    listed,
)


@pytest.mark.parametrize("error", [ConfigError, DataError, ArtifactError, UnsupportedError, ToolError])
def test_every_error_for_the_user_is_of_one_tree(error: type[Exception]) -> None:
    assert issubclass(error, GladstoneError)


@pytest.mark.parametrize(("count", "lines", "hidden"), [(2, 2, 0), (10, 10, 0), (11, 10, 1), (500, 10, 490)])
def test_at_most_ten_problems_are_listed_and_the_rest_is_counted(count: int, lines: int, hidden: int) -> None:
    text = listed("recipe.yaml", [f"problem {number}" for number in range(count)]).splitlines()
    assert text[0] == f"recipe.yaml ({count} problems):"
    assert text[1 : lines + 1] == [f"  - problem {number}" for number in range(lines)]
    assert text[lines + 1 :] == ([f"  … and {hidden} more"] if hidden else [])


def test_a_single_problem_stands_on_the_line_of_the_headline() -> None:
    assert listed("recipe.yaml", ["no name"]) == "recipe.yaml: no name"
