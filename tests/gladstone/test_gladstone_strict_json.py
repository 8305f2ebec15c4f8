"""No NaN and no infinity in any JSON that Gladstone writes; both come back as numbers."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.schema import Recipe
from finetune.data.hub import write_json_lines
from finetune.monitor.metrics_log import MetricsLog, StepStats, read_history
from gladstone.artifacts import Manifest, read_manifest, write_manifest
from gladstone.config import build_config
from gladstone.errors import ConfigError
from gladstone.strict_json import json_text, number, numbers, tagged
from runtime.grammars.json_schema import prepare_schema
from tests.tiny_models import tiny_recipe

ROOT = Path(__file__).parents[2]
PACKAGES = ("gladstone", "finetune", "export", "runtime", "bench")
# what no file holds and no user sees: pipes between two Pythons, pydantic's input, and the `tojson` of templates, whose
# result is that of transformers
OWN_JSON = {
    "gladstone/process/child.py", "gladstone/process/child_main.py", "gladstone/chat/guarded_template.py",
    "gladstone/chat/guarded_template_child.py", "gladstone/config.py", "gladstone/chat/jinja_sandbox.py",
}  # fmt: skip


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet="ab é"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_every_value_comes_back_from_json_that_every_reader_accepts(value: Any) -> None:
    assert repr(numbers(strict(json_text(value)))) == repr(value)


def test_numbers_that_are_not_finite_are_texts_wherever_they_are() -> None:
    value = {"a": [math.nan, (math.inf, {"b": -math.inf})], math.inf: 1.5}
    assert strict(json_text(value)) == {"a": ["NaN", ["Infinity", {"b": "-Infinity"}]], "Infinity": 1.5}
    assert number("-Infinity") == -math.inf
    assert number("nan") == "nan"
    assert strict(json_text([math.inf], non_finite=tagged)) == [{"__float__": "Infinity"}]


def test_transformers_reads_the_infinity_of_a_models_config() -> None:
    from transformers import PretrainedConfig

    text = json_text({"time_step_limit": [0.0, math.inf]}, non_finite=tagged)
    assert PretrainedConfig._decode_special_floats(strict(text)) == {"time_step_limit": [0.0, math.inf]}


def test_json_is_written_in_one_place_or_refuses_what_is_no_json() -> None:
    loose = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) not in ("json.dumps", "json.dump", "dumps", "dump"):
                continue
            if not any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in call.keywords):
                loose.append(f"{name}:{call.lineno}")
    assert [place for place in loose if place.rpartition(":")[0] not in OWN_JSON] == []


def stats(step: int, loss: float, norm: float) -> StepStats:
    return StepStats(step, loss, 1e-4, norm, 5, 9, 0.0, 0.1)


def test_a_metrics_log_with_skipped_steps_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append_step(stats(1, 2.0, math.inf))
    log.append_step(stats(2, math.nan, math.nan))
    log.append_step(stats(3, 2.0, 1.0))
    log.append("step skipped", 2, grad_norm=math.nan)
    log.close()
    for line in path.read_text().splitlines():
        strict(line)
    read = read_history(path)
    assert [each.skipped for each in read.steps] == [True, True, False]
    assert read.steps[0].grad_norm == math.inf
    assert math.isnan(read.steps[1].loss_nats_per_token)
    assert [each.step for each in read.applied] == [3]
    again = MetricsLog(tmp_path / "again.jsonl", path.read_bytes())
    again.close()
    assert again.history.steps[0] == read.steps[0]


def test_metrics_of_an_earlier_version_hold_bare_words(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = {"kind": "step", **vars(stats(1, 2.0, math.nan))}
    path.write_text(
        json.dumps(line) + "\n" + '{"kind": "validation", "step": 1, "loss_nats_per_token": NaN}\n'
        '{"kind": "validation", "step": 2, "loss_nats_per_token": 3.5}\n'
    )
    assert "NaN" in path.read_text()
    read = read_history(path)
    assert read.steps[0].skipped
    assert read.best == (2, 3.5)


def test_a_manifest_keeps_the_infinity_of_a_setting(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path / "rows.jsonl", training={"max_grad_norm": math.inf})
    made = build_config(Recipe, recipe, "recipe")
    write_manifest(tmp_path, Manifest("finetune", (), {}, made.model_dump(mode="json"), {}, facts={"x": math.nan}))
    strict((tmp_path / "manifest.json").read_text())
    config = read_manifest(tmp_path).config
    assert build_config(Recipe, config, "recipe").training.max_grad_norm == math.inf
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace('"NaN"', "NaN"))
    assert math.isnan(read_manifest(tmp_path).facts["x"])  # as earlier versions wrote it


def test_a_setting_that_is_no_number_is_refused(tmp_path: Path) -> None:
    settings = {"schedule": "cosine", "schedule_settings": {"num_cycles": math.nan}}
    recipe = tiny_recipe(tmp_path, tmp_path / "rows.jsonl", training=settings)
    with pytest.raises(ConfigError, match=r"training\.schedule_settings\.num_cycles: expected a finite number"):
        build_config(Recipe, recipe, "recipe")


def test_a_missing_value_of_a_hub_dataset_is_null(tmp_path: Path) -> None:
    write_json_lines([{"question": "Why?", "score": math.nan, "more": [1.0, -math.inf]}], tmp_path / "rows.jsonl")
    assert strict((tmp_path / "rows.jsonl").read_text()) == {"question": "Why?", "score": None, "more": [1.0, None]}


def test_a_number_too_large_in_a_json_schema_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid JSON"):
        prepare_schema('{"type": "number", "maximum": 1e999}')
