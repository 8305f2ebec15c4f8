"""Validation and test sets from files of their own, or none at all: prepared, trained with, exported."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from export.cli import main as export_main
from finetune.cli import main
from finetune.config.data import DataSection
from finetune.config.load import load_recipe
from finetune.data.prepare import prepare, read_set
from finetune.estimate.estimate import estimate
from finetune.estimate.text import as_json
from finetune.reports.compare.runs import read_runs
from finetune.reports.compare.table import compare
from finetune.sweep.search_space import read_plan
from gladstone.artifacts import check_files, read_manifest
from gladstone.commands.progress import Silent
from gladstone.config import build_config
from gladstone.errors import ConfigError, DataError
from tests.tiny_models import medical_rows, tiny_recipe, write_rows_file

Rows = list[dict[str, str]]
NAILS = {"question": "Why do nails grow slowly in winter?", "answer": "Less blood reaches them in the cold."}
SWIM = {"question": "May I swim after a large meal?", "answer": "Yes, but wait until you feel well."}
SLEEP = {"question": "How many hours should a child of six sleep?", "answer": "Nine to twelve hours every night."}


def write(folder: Path, **files: Rows) -> Path:
    for name, rows in files.items():
        write_rows_file(folder / f"{name}.jsonl", rows)
    return folder


def section(folder: Path, **fields: Any) -> DataSection:
    return build_config(DataSection, {"sources": [{"path": str(folder / "rows.jsonl")}], **fields}, "data")


def texts(folder: Path, name: str) -> list[str]:
    return [row.prompt[-1].content for row in read_set(folder, name)]


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write(tmp_path, rows=medical_rows(), own_test=[NAILS, SWIM], own_validation=[SLEEP])


@pytest.mark.parametrize("division", ["seed", "hash"])
@pytest.mark.parametrize(("validation", "test"), list(product([0.2, 0, "own_validation"], [0.2, 0, "own_test"])))
def test_each_set_is_drawn_or_none_or_its_own_file(
    validation: float | str, test: float | str, division: str, files: Path
) -> None:
    wanted = {"validation": validation, "test": test}
    fields = {name: str(files / f"{each}.jsonl") if isinstance(each, str) else each for name, each in wanted.items()}
    out = files / "data"
    write(out.parent, rows=medical_rows())
    for name in ("train", "validation", "test"):  # of an earlier call
        out.mkdir(exist_ok=True)
        (out / f"{name}.jsonl").write_text("old\n")
    summary = prepare(section(files, division=division, **fields), out, Silent())
    own = {"own_validation": [SLEEP["question"]], "own_test": [NAILS["question"], SWIM["question"]]}
    for name, each in wanted.items():
        assert (out / f"{name}.jsonl").exists() is (each != 0)
        if isinstance(each, str):
            assert texts(out, name) == own[each]
        assert summary.sets[name] == len(texts(out, name))
        assert bool(summary.sets[name]) is (each != 0)
    drawn = [name for name, each in wanted.items() if isinstance(each, float)]
    assert sum(summary.sets[name] for name in ("train", *drawn)) == 40
    assert summary.read == sum(summary.sets.values()) + summary.left_out
    if not drawn:
        assert texts(out, "train") == [row["question"] for row in medical_rows()]


def test_no_training_row_is_in_an_own_file_and_no_validation_row_in_the_test_file(tmp_path: Path) -> None:
    rows = medical_rows()
    slip = rows[3] | {"question": rows[3]["question"].upper()}
    write(tmp_path, rows=rows, own_test=[rows[0], slip, NAILS, NAILS], own_validation=[rows[0], rows[7], SLEEP])
    own = {name: str(tmp_path / f"own_{name}.jsonl") for name in ("test", "validation")}
    summary = prepare(section(tmp_path, **own), tmp_path / "data", Silent())
    assert texts(tmp_path / "data", "test") == [
        rows[0]["question"], slip["question"], NAILS["question"], NAILS["question"],
    ]  # fmt: skip
    assert texts(tmp_path / "data", "validation") == [rows[7]["question"], SLEEP["question"]]
    kept = texts(tmp_path / "data", "train")
    assert {rows[0]["question"], rows[3]["question"], rows[7]["question"]}.isdisjoint(kept)
    reasons = {(Path(row["source"]).name, row["reason"]) for row in dropped(tmp_path / "data")}
    assert reasons >= {
        ("rows.jsonl:1", "leak into the test file"),
        ("rows.jsonl:4", "leak into the test file"),
        ("rows.jsonl:8", "leak into the validation file"),
        ("own_validation.jsonl:1", "leak into the test file"),
    }
    assert summary.dropped["leak into the test file"] + summary.dropped["leak into the validation file"] == len(reasons)
    assert any("own_test.jsonl: 1 row is an exact copy" in note for note in summary.notes)


def test_an_own_file_is_cleaned_and_never_thinned(tmp_path: Path) -> None:
    bare = {"question": "Why do nails\u200b grow slowly?  ", "answer": "Less blood reaches them in the cold.\r\n"}
    write(tmp_path, rows=medical_rows(), own_test=[bare, SWIM, SLEEP])
    chosen = section(tmp_path, test=str(tmp_path / "own_test.jsonl"), max_rows=10)
    summary = prepare(chosen, tmp_path / "data", Silent())
    assert summary.sets["test"] == 3
    assert summary.sets["train"] + summary.sets["validation"] == 10
    assert texts(tmp_path / "data", "test")[0] == "Why do nails grow slowly?"


def test_an_own_file_may_have_another_layout_and_the_encoding_of_the_section(tmp_path: Path) -> None:
    write(tmp_path, rows=medical_rows())
    (tmp_path / "own.csv").write_bytes("Frage;Antwort\nWie groß?;So groß, wie es eben ist.\n".encode("cp1252"))
    own = {"path": str(tmp_path / "own.csv"), "columns": {"question": "Frage", "answer": "Antwort"}}
    prepare(section(tmp_path, test=own, encoding="cp1252"), tmp_path / "data", Silent())
    assert texts(tmp_path / "data", "test") == ["Wie groß?"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such data file"),
        ("", "empty"),
        ('{"question": "a", "answer": "b"}\n{nope\n', "own.jsonl:2"),
        ('{"foo": 1}\n', "own.jsonl"),
    ],
)
@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_file_that_is_no_use_is_an_error_with_the_options_name(
    name: str, content: str | None, told: str, files: Path
) -> None:
    if content is not None:
        (files / "own.jsonl").write_text(content)
    with pytest.raises((ConfigError, DataError), match=rf"data\.{name}") as error:
        prepare(section(files, **{name: str(files / "own.jsonl")}), files / "data", Silent())
    assert told in str(error.value)


def test_a_file_cannot_be_source_and_test_nor_validation_and_test(files: Path) -> None:
    shutil.copy(files / "rows.jsonl", files / "copy.jsonl")
    for name in ("rows.jsonl", "copy.jsonl"):
        with pytest.raises(ConfigError, match=rf"data\.test: .*{name} is also a source"):
            prepare(section(files, test=str(files / name)), files / "data", Silent())
    same = str(files / "own_test.jsonl")
    with pytest.raises(ConfigError, match=r"data\.validation and data\.test: .*own_test\.jsonl is both"):
        prepare(section(files, test=same, validation=same), files / "data", Silent())


def test_a_test_file_that_has_every_training_row_is_an_error(files: Path) -> None:
    write(files, own_test=[*medical_rows(), NAILS])
    with pytest.raises(DataError, match="no row is left to train on of 81: leak into the test file 40"):
        prepare(section(files, test=str(files / "own_test.jsonl")), files / "data", Silent())


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1, "test: expected greater than or equal to 0, found -1"),
        (True, "test: expected a valid number, found True"),
        (None, "test: expected a valid number, found None"),
        ({"path": "x.jsonl", "formt": "qa"}, "test.formt: unknown field (did you mean 'format'?)"),
        ({"path": "x.jsonl", "weight": 2}, "test: weight and share are of training rows"),
    ],
)
def test_what_is_neither_size_nor_file_is_named(value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        section(tmp_path, test=value)
    assert told in str(error.value)


def test_what_needs_validation_rows_is_refused_without_them() -> None:
    for setting in ("training.patience=2", "training.samples=3"):
        with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]}: .*data\.validation=0"):
            load_recipe("smollm2-135m", [setting, "data.validation=0"], ("rows.jsonl", "auto"))


@pytest.mark.parametrize("place", ["overrides", "fields"])
def test_a_sweep_without_validation_rows_is_refused(place: str, tmp_path: Path) -> None:
    write(tmp_path, rows=medical_rows())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path, tmp_path / "rows.jsonl")))
    sweep: dict[str, Any] = {"recipe": str(recipe), "fields": {"lora.rank": [4, 8]}}
    none = {"data.validation": 0 if place == "overrides" else [0, 0.1]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {place: none}))
    with pytest.raises(ConfigError, match=r"data\.validation=0: a sweep compares its trials"):
        read_plan(tmp_path / "sweep.yaml")


def finetune(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def write_recipe(folder: Path, base: Path) -> Path:
    write(folder, rows=medical_rows())
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(base, folder / "rows.jsonl")))
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Result]:
    """A whole run without validation and test rows, and what the command printed."""
    folder = tmp_path_factory.mktemp("bare")
    recipe = write_recipe(folder, tiny_base)
    result = finetune("run", recipe, "--set", "data.validation=0", "--set", "data.test=0", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_a_run_without_held_out_rows_measures_none_and_says_so(bare: tuple[Path, Result]) -> None:
    out, result = bare
    manifest = read_manifest(out)
    check_files(out, manifest)
    recorded = {record.path for record in manifest.files}
    missing = {"data/validation.jsonl", "data/test.jsonl", "before_after.png"}
    assert recorded.isdisjoint(missing)
    assert not any((out / path).exists() for path in missing)
    facts = manifest.facts
    assert facts["rows"] == {"train": 40, "validation": 0, "test": 0}
    assert (facts["held_out_loss_before"], facts["held_out_loss_after"], facts["validation_loss"]) == (None, None, [])
    assert "not measured, the run has no test rows" in result.stdout
    assert "the training loss alone" in result.output
    assert "the last step's adapter is kept" in result.output


def test_its_export_is_proven_on_training_rows_and_measures_nothing_else(bare: tuple[Path, Result]) -> None:
    out, _ = bare
    arguments = ["gguf", str(out), "--quant", "q8_0", "--base-precision", "best"]
    result = CliRunner().invoke(export_main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "without held-out rows, the two bases were not compared" in said
    assert "the run held out no rows" in said
    proof = json.loads((out / "gguf" / "proof.json").read_text())
    assert proof["passed"]
    assert proof["held_out"] == {}
    assert any("answers that were trained on" in point["detail"] for point in proof["models"]["tiny"])
    card = (out / "gguf" / "README.md").read_text()
    assert "Not measured: the run has no test and no validation rows" in card
    assert "not measured: the run has no test rows" in card
    assert "answers that were not trained on" not in card


def test_runs_with_and_without_held_out_rows_are_compared(bare: tuple[Path, Result], own: tuple[Path, Result]) -> None:
    comparison = compare(read_runs([bare[0], own[0]]))
    warnings = " ".join(comparison.warnings)
    assert "test rows differ" in warnings
    assert "not known" not in warnings


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Result]:
    """A run with an own test file that has a training row, and an own validation file; stopped and resumed."""
    folder = tmp_path_factory.mktemp("own")
    recipe = write_recipe(folder, tiny_base)
    write(folder, own_test=[medical_rows()[0], NAILS, SWIM], own_validation=[SLEEP])
    files = [f"--set=data.{name}={folder / f'own_{name}.jsonl'}" for name in ("test", "validation")]
    stopped = finetune("run", recipe, *files, "--out", folder / "out", "--max-steps", 2)
    assert stopped.exit_code == 0, stopped.output
    write(folder, own_test=[NAILS, SWIM])
    changed = finetune("run", "--resume", "--out", folder / "out")
    assert changed.exit_code == 1
    assert f"data:{folder / 'own_test.jsonl'} has changed" in changed.output
    write(folder, own_test=[medical_rows()[0], NAILS, SWIM])
    result = finetune("run", "--resume", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_a_run_measures_on_its_own_files_and_goes_on_only_while_they_are_the_same(own: tuple[Path, Result]) -> None:
    out, result = own
    manifest = read_manifest(out)
    assert manifest.facts["rows"] == {"train": 39, "validation": 1, "test": 3}
    assert manifest.facts["left_out"] == {"leak into the test file": 1}
    assert manifest.facts["held_out_loss_after"] is not None
    assert f"data:{out.parent / 'own_validation.jsonl'}" in manifest.parents
    assert manifest.config["data"]["test"]["path"] == str(out.parent / "own_test.jsonl")
    assert "(3 rows" in result.stdout


def test_a_run_without_test_rows_is_judged_by_its_validation_rows(tiny_base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_base)
    sets = ["--set=data.test=0", "--set=data.validation=8"]
    spoiled = ["--set=training.learning_rate=50", "--set=training.max_steps=1", "--set=training.evaluations=1"]
    result = finetune("run", recipe, *sets, *spoiled, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    facts = read_manifest(tmp_path / "out").facts
    assert facts["held_out_loss_after"] is None
    (first, *_) = facts["warnings"]
    assert first["kind"] == "worse than before"
    assert "validation loss" in first["text"]
    assert first["figures"]["before"] == facts["validation_loss_before"] < first["figures"]["after"]
    assert first["figures"]["after"] == facts["validation_loss"][-1][1]


def test_an_estimate_counts_no_rows_and_own_rows(tiny_base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_base)
    write(tmp_path, own_test=[NAILS, SWIM])
    chosen = load_recipe(str(recipe), ["data.validation=0", f"data.test={tmp_path / 'own_test.jsonl'}"])
    told = as_json(estimate(chosen, Silent(), "t4"))
    assert told["rows"] == {"train": 40, "validation": 0, "test": 2}
    neither = as_json(estimate(load_recipe(str(recipe), ["data.validation=0", "data.test=0"]), Silent(), "t4"))
    assert neither["evaluation_s"] == 0


def test_a_benchmark_file_has_the_encoding_of_the_others_and_its_notes_are_shown(tmp_path: Path) -> None:
    write(tmp_path, rows=medical_rows())
    rows = [{"question": "Was fördert die Verdauung nach dem Essen?", "answer": "Ein Spaziergang.", "quelle": "x"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "bench.jsonl").write_bytes("\n".join(lines).encode("cp1252"))
    fields = {"encoding": "cp1252", "held_out": [{"path": str(tmp_path / "bench.jsonl")}]}
    summary = prepare(section(tmp_path, **fields), tmp_path / "out", Silent())
    notes = [note for note in summary.notes if "bench.jsonl" in note]
    assert any("quelle" in note for note in notes)


def test_a_preview_says_that_an_own_set_is_missing(tmp_path: Path) -> None:
    write(tmp_path, rows=medical_rows())
    arguments = ["data", "preview", str(tmp_path / "rows.jsonl"), "--set", f"data.test={tmp_path / 'gone.jsonl'}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "gone.jsonl" in result.output
