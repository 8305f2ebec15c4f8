"""The share of answers in a wanted form, its interval, and what the report says of it."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import bench.cli
from bench.metrics.answer_form import FORM, Form, read_form
from bench.metrics.metrics import METRICS
from bench.metrics.proportions import proportion, proportion_difference
from bench.report.html import render_page
from bench.report.markdown import render_markdown
from bench.report.summary import summarise
from bench.report.terminal import render_summary
from bench.results import BETTER, Report
from bench.run import _form_warnings
from gladstone.errors import ConfigError
from tests.bench.bench_samples import make_inputs, make_report

NOTE = r"Organ: (?P<organ>[^\n]+)\nSide: (?P<side>left|right)"
SCHEMA = {
    "type": "object",
    "properties": {"organ": {"type": "string"}, "side": {"enum": ["left", "right"]}, "paired": {"type": "boolean"}},
    "required": ["organ", "side", "paired"],
}


def schema_file(folder: Path, text: str = json.dumps(SCHEMA)) -> Path:
    path = folder / "note.schema.json"
    path.write_text(text)
    return path


def of_regex(pattern: str = NOTE) -> Form:
    form = read_form(pattern, None)
    assert form is not None
    return form


def report_with_form(base: list[str], tuned: list[str], reference: str, stops: dict[int, str] | None = None) -> Report:
    inputs = make_inputs({"base": base, "tuned": tuned})
    items = tuple(replace(item, reference=replace(item.reference, content=reference)) for item in inputs.items)
    first, other = inputs.measured
    answers = tuple(
        replace(answer, stop_reason=(stops or {}).get(place, "end")) for place, answer in enumerate(other.answers)
    )
    measured = (first, replace(other, answers=answers))
    report = summarise(replace(inputs, items=items, measured=measured, metrics=of_regex().metrics() | METRICS), [])
    plain = make_report({"base": base, "tuned": tuned})
    return replace(report, settings=plain.settings | {"regex": NOTE}, provenance=plain.provenance)


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_an_interval_of_a_share_holds_it_and_has_a_width_at_both_ends(right: list[bool]) -> None:
    found = proportion([float(each) for each in right])
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.05


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    cases = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (ones, n), (low, high) in cases.items():
        found = proportion([1.0] * ones + [0.0] * (n - ones))
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_newcombes_interval_is_the_published_one() -> None:
    """Of 50 pairs both are right in 36, the first alone in 12, the other alone in 2."""
    gap = proportion_difference([1.0] * 48 + [0.0] * 2, [1.0] * 36 + [0.0] * 12 + [1.0] * 2)
    assert (gap.low, gap.high) == pytest.approx((-0.3404, -0.0569), abs=6e-5)


def test_the_interval_of_a_paired_difference_covers_the_truth() -> None:
    """Every outcome of 12 pairs, weighed by its probability: how often the interval holds the true difference."""
    n, chances = 12, (0.3, 0.05, 0.4, 0.25)  # both, first only, other only, neither
    truth, covered = chances[2] - chances[1], 0.0
    for counts in product(range(n + 1), repeat=3):
        rest = n - sum(counts)
        if rest < 0:
            continue
        ways = math.factorial(n)
        probability = 1.0
        for count, chance in zip((*counts, rest), chances, strict=True):
            ways //= math.factorial(count)
            probability *= chance**count
        both, first_only, other_only = counts
        first = [1.0] * (both + first_only) + [0.0] * (other_only + rest)
        other = [1.0] * both + [0.0] * first_only + [1.0] * other_only + [0.0] * rest
        gap = proportion_difference(first, other)
        covered += ways * probability * (gap.low <= truth <= gap.high)
    assert 0.93 < covered < 0.98


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_a_paired_difference_turns_round_with_its_sides(pairs: list[tuple[bool, bool]]) -> None:
    first, other = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    there, back = proportion_difference(first, other), proportion_difference(other, first)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.low <= there.mean <= there.high


def test_a_pattern_has_to_match_from_end_to_end_and_its_groups_are_held_against_the_reference() -> None:
    metrics = of_regex().metrics()
    assert list(metrics) == [FORM, f"{FORM}.organ", f"{FORM}.side"]
    reference = "Organ: lung\nSide: left"
    answers = [reference, "Organ: lung\nSide: right", f"Sure!\n{reference}", f"{reference}\nand more", ""]
    scores = {name: metric.score(answers, [reference] * 5).scores for name, metric in metrics.items()}
    assert scores[FORM] == (1, 1, 0, 0, 0)
    assert scores[f"{FORM}.organ"] == (1, 1, 0, 0, 0)
    assert scores[f"{FORM}.side"] == (1, 0, 0, 0, 0)


def test_a_schema_inside_openais_wrapper_is_the_schema(tmp_path: Path) -> None:
    inside = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": inside}}
    (tmp_path / "wrapped.json").write_text("\ufeff" + json.dumps(wrapped), encoding="utf-8")
    form = read_form(None, tmp_path / "wrapped.json")
    assert form is not None
    assert form.names == ("a",)
    assert (form.read('{"a": true}'), form.read('{"b": 1}')) == ({"a": True}, None)


def test_a_schema_takes_json_that_fits_and_compares_properties_of_few_values(tmp_path: Path) -> None:
    form = read_form(None, schema_file(tmp_path))
    assert form is not None
    reference = '{"organ": "lung", "side": "left", "paired": true}'
    answers = [
        reference,
        '{"side": "right", "organ": "the left lung", "paired": true}',
        '{"organ": "lung", "side": "both", "paired": true}',
        '{"organ": "lung", "side": "left", "paired": NaN}',
        f"```json\n{reference}\n```",
        "[" * 100_000,
    ]
    scores = {name: metric.score(answers, [reference] * 6).scores for name, metric in form.metrics().items()}
    assert scores == {
        FORM: (1, 1, 0, 0, 0, 0),
        f"{FORM}.side": (1, 0, 0, 0, 0, 0),
        f"{FORM}.paired": (1, 1, 0, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("regex", "text", "named"),
    [
        ("(", None, ["--regex '('", "character 1"]),
        (None, "{", ["--json-schema", "not valid JSON"]),
        (None, '{"type": "organ"}', ["--json-schema", "not a valid JSON schema", "type", "'organ'"]),
        ("a", "{}", ["--regex and --json-schema"]),
    ],
)
def test_a_form_that_cannot_be_read_is_one_message(
    regex: str | None, text: str | None, named: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_form(regex, schema_file(tmp_path, text) if text is not None else None)
    assert all(each in str(caught.value) for each in named), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_schema_ends_the_command_before_a_model_is_loaded(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Where?", "answer": "Here and there."}\n' * 2)
    command = ["run", str(tmp_path / "no.gguf"), "--data", str(rows), "--out", str(tmp_path / "out"), "--json-schema"]
    done = CliRunner().invoke(bench.cli.main, [*command, str(tmp_path / "no.json")])
    assert done.exit_code == 1
    assert "no.json: cannot be read: No such file" in done.output or "no.gguf" in done.output


def test_references_that_do_not_match_are_told_with_the_first_of_them() -> None:
    items = make_inputs({"base": [""] * 3}).items
    told = _form_warnings(of_regex(), items)
    assert len(told) == 1
    assert told[0].startswith("3 of 3 reference answers are not in the form themselves (first: rows.jsonl:1)")
    assert _form_warnings(of_regex("the heart"), items) == []
    assert _form_warnings(None, items) == []


def test_the_report_says_how_many_answers_are_in_the_form_before_and_after() -> None:
    reference = "Organ: lung\nSide: left"
    report = report_with_form(["It is the lung."] * 12, [reference] * 12, reference)
    assert report.models[0].results[FORM].high == pytest.approx(0.2425, abs=1e-3)
    assert report.models[1].differences[FORM].verdict == BETTER
    assert "tuned against base: answers in the form 0 → 12 of 12, better (" in report.headline[0]
    for page in (render_page(report), render_markdown(report), render_summary(report, Path("out"))):
        assert "in the form" in page
        assert "side as the reference" in page
    assert "not in the form · " in render_page(report)


def test_an_answer_that_was_cut_off_is_not_in_the_form() -> None:
    reference = "Organ: lung\nSide: left"
    report = report_with_form(["no"] * 12, [reference] * 12, reference, {0: "length", 1: "context"})
    assert report.models[1].results[FORM].mean == pytest.approx(10 / 12)
    assert report.models[1].results[f"{FORM}.side"].mean == pytest.approx(10 / 12)
    assert "0 → 10 of 12" in report.headline[0]
