"""Options and fields with a new name are still accepted under the earlier one, and a line says so."""

import logging
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from gladstone.commands.group import Group
from gladstone.commands.renamed_option import RenamedOption
from gladstone.config import Config, apply_overrides, build_config
from gladstone.errors import ConfigError


@click.group(cls=Group)
def main() -> None:
    """A command with renamed options."""


@main.command()
@click.option("--base-precision", cls=RenamedOption, earlier="--onto", type=click.Choice(["16bit", "nf4"]), default="16bit", help="Which base.")  # fmt: skip
@click.option("--type", "types", cls=RenamedOption, earlier="--quant", multiple=True, default=("q8_0",))
@click.option("--check", "checked", cls=RenamedOption, earlier="--verify", is_flag=True)
def show(base_precision: str, types: tuple[str, ...], *, checked: bool) -> None:
    """Print what arrives."""
    click.echo(f"{base_precision} {' '.join(types)} {checked}")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["show", *arguments])


@pytest.mark.parametrize(
    ("arguments", "arrives"),
    [
        (["--onto", "nf4"], "nf4 q8_0 False"),
        (["--onto=nf4"], "nf4 q8_0 False"),
        (["--quant", "f16", "--quant", "q4_0"], "16bit f16 q4_0 False"),
        (["--verify"], "16bit q8_0 True"),
    ],
)
def test_an_option_is_accepted_under_its_earlier_name_and_a_line_on_stderr_names_the_new_one(
    arguments: list[str], arrives: str
) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, arrives)
    assert len(result.stderr.splitlines()) == 1
    current = {"--onto": "--base-precision", "--quant": "--type", "--verify": "--check"}
    earlier = arguments[0].partition("=")[0]
    assert earlier in result.stderr
    assert current[earlier] in result.stderr


def test_an_option_under_its_new_name_needs_no_line() -> None:
    result = call("--base-precision", "nf4", "--type", "f16", "--check")
    assert (result.stdout.strip(), result.stderr) == ("nf4 f16 True", "")
    assert call().stdout.strip() == "16bit q8_0 False"


def test_an_option_under_both_names_is_a_usage_error_that_names_both() -> None:
    result = call("--onto", "nf4", "--base-precision", "16bit")
    assert result.exit_code == 2
    assert "--onto" in result.stderr
    assert "--base-precision" in result.stderr


def test_a_wrong_value_under_the_earlier_name_is_a_usage_error() -> None:
    result = call("--onto", "8bit")
    assert result.exit_code == 2
    assert "8bit" in result.stderr


def test_help_shows_the_new_name_alone() -> None:
    shown = call("--help").stdout
    assert "--base-precision" in shown
    assert "--onto" not in shown


class Part(Config):
    """A section inside a list."""

    renamed: ClassVar = {"file": "path"}
    path: str = "rows.jsonl"


class Section(Config):
    """A section."""

    renamed: ClassVar = {"lr": "learning_rate"}
    learning_rate: float = 0.1


class Whole(Config):
    """A configuration with renamed fields at each depth."""

    renamed: ClassVar = {"train": "training"}
    training: Section = Section()
    parts: tuple[Part, ...] = ()
    one: Part | None = None


@pytest.mark.parametrize(
    ("data", "earlier", "current"),
    [
        ({"training": {"lr": 0.5}}, "training.lr", "training.learning_rate"),
        ({"train": {"learning_rate": 0.5}}, "train", "training"),
        ({"parts": [{}, {"file": "a.csv"}]}, "parts.1.file", "parts.1.path"),
        ({"one": {"file": "a.csv"}}, "one.file", "one.path"),
    ],
)
def test_a_field_is_accepted_under_its_earlier_name_and_a_line_names_the_new_one(
    data: dict[str, Any], earlier: str, current: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = build_config(Whole, data, "recipe a.yaml")
    assert 0.5 in {made.training.learning_rate, 0.5 if made.parts or made.one else None}
    paths = [part.path for part in (*made.parts, *((made.one,) if made.one else ()))]
    assert paths[-1:] in ([], ["a.csv"])
    [line] = caplog.messages
    assert earlier in line
    assert current in line


def test_an_override_may_use_the_earlier_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = build_config(Whole, apply_overrides({}, ["training.lr=0.25"]), "recipe a.yaml")
    assert made.training.learning_rate == 0.25
    assert len(caplog.messages) == 1


def test_a_field_under_both_names_is_an_error_that_names_both() -> None:
    with pytest.raises(ConfigError, match=r"(?s)recipe a\.yaml.*training\.lr.*learning_rate"):
        build_config(Whole, {"training": {"lr": 0.5, "learning_rate": 0.1}}, "recipe a.yaml")


def test_an_unknown_field_stays_an_error_that_suggests_the_new_name() -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rat.*learning_rate"):
        build_config(Whole, {"training": {"learning_rat": 0.5}}, "recipe a.yaml")
