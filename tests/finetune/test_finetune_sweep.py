"""SWEEP.yaml, the study and the table: all that a sweep does besides training."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from finetune.cli import main
from finetune.sweep.config import SweepSection
from finetune.sweep.page import render_page
from finetune.sweep.results import Row, Table, TrialMetrics
from finetune.sweep.search_space import Plan, read_plan
from finetune.sweep.storage import start_or_continue, stored_plan, sweep_lock, trial_lock
from finetune.sweep.study import JOURNAL_NAME, Study, repair_journal, sample_points
from finetune.sweep.table import ending, render_csv, render_markdown, render_text
from gladstone.errors import ArtifactError, ConfigError
from tests.finetune.sweeps import open_sweep, write_sweep

pytest.importorskip("optuna", reason="the extra finetune is not installed whole")

LEARNING_RATES = {"low": 1e-5, "high": 1e-3, "log": True}


def plan_of(folder: Path, **sweep: Any) -> Plan:
    return read_plan(write_sweep(folder, "embedded:smollm2-135m-instruct", **sweep))


def refusal(folder: Path, **sweep: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(folder, **sweep)
    return str(caught.value)


def claimed(study: Study) -> list[dict[str, Any]]:
    """The settings of all trials that are left, each told a loss."""
    found = []
    while (claim := study.claim()) is not None:
        found.append(claim.settings)
        study.finish(claim.number, float(claim.number))
    return found


# --- SWEEP.yaml


def test_a_grid_is_every_combination_and_the_last_field_changes_fastest(tmp_path: Path) -> None:
    fields = {"lora.rank": [4, 8], "lora.targets": [["q_proj"], ["q_proj", "v_proj"]]}
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields=fields)
    _, study = open_sweep(path, tmp_path / "out")
    assert claimed(study) == [
        {"lora.rank": rank, "lora.targets": targets}
        for rank in (4, 8)
        for targets in (["q_proj"], ["q_proj", "v_proj"])
    ]


def test_epochs_that_are_tried_replace_the_recipes_steps_and_two_lengths_are_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, fields={"training.epochs": [1, 2]})
    assert [plan.recipe_of({"training.epochs": epochs}).training.total_steps(10) for epochs in (1, 2)] == [10, 20]
    assert "training.max_steps=4 of the recipe is ignored, because the sweep varies training.epochs." in plan.notes
    with pytest.raises(ConfigError, match=r"training\.epochs and training\.max_steps both set the length"):
        plan_of(tmp_path, fields={"training.epochs": [1, 2]}, overrides={"training.max_steps": 5})


def test_a_trials_recipe_has_the_overrides_the_settings_and_a_name_of_its_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, fields={"lora.rank": [4, 8]}, overrides={"training.epochs": 2, "lora.alpha": 32})
    recipe = plan.recipe_of({"lora.rank": 8}, 3)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.training.epochs, recipe.name) == (8, 32, 2, "tiny-003")
    assert plan.recipe_of({"lora.rank": 8}).name == "tiny"


def test_every_mistake_is_in_one_message(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        fields={
            "training.learning_rat": [1e-4],
            "rank": [4],
            "lora.rank": [4, 0, 4.5],
            "lora.alpha": {"low": 64, "high": 8},
            "lora.dropout": 0.1,
            "training.weight_decay": [],
            "training.max_grad_norm": [1, 1],
            "name": ["a"],
        },
        overrides={"lora.rank": 3},
        trials=5,
    )
    assert message.splitlines()[0] == "sweep sweep.yaml (11 problems):"
    for part in (
        "fields.lora.alpha: low (64) must be below high (8)",
        "fields.lora.dropout: expected a list of values or a range",
        "fields.training.weight_decay: the list is empty.",
        "fields.training.max_grad_norm: 1 is listed twice.",
        "trials: a grid runs every combination.",
        "fields.training.learning_rat: unknown field (did you mean 'training.learning_rate'?).",
        "fields.rank: unknown field (did you mean 'lora.rank'?).",
        "fields.name: is set by the sweep",
        "lora.rank: is under both fields and overrides.",
        "fields.lora.rank 0: lora.rank: expected greater than 0, found 0.",
    ):
        assert part in message
    assert message.endswith("… and 1 more")


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({"fields": {}}, "fields: expected"),
        ({"fields": {"lora.rank": [4]}, "serch": "grid"}, "serch: unknown field (did you mean 'search'?)."),
        ({"fields": {"lora.rank": [4]}, "search": "tpe"}, "trials: missing, required for search: tpe."),
        ({"fields": {"lora.rank": [4, 8]}, "search": "random", "trials": 3}, "the lists have only 2 combinations"),
        ({"fields": {"lora.rank": {"low": 4, "high": 8}}}, "fields.lora.rank: a grid needs a list of values"),
        (
            {"fields": {"lora.dropout": {"low": 0.0, "high": 1.0}}, "search": "random", "trials": 3},
            "fields.lora.dropout 1: lora.dropout: expected less than 1, found 1.0.",
        ),
        (
            {"fields": {"training.learning_rate": {"low": 0, "high": 1, "log": True}}, "search": "tpe", "trials": 3},
            "log: true requires low > 0",
        ),
        ({"fields": {"lora.rank": [4]}, "pruning": "medium"}, "pruning.kind: expected"),
        (
            {"fields": {"lora.rank": [4]}, "pruning": {"kind": "median", "reduction": 3}},
            "reduction needs kind: halving",
        ),
        ({"fields": {"lora.rank": [4]}, "objective": "ROUGE"}, "objective: expected 'validation loss'"),
        ({"fields": {"lora.rank": [4]}, "recipe": "smollm2"}, "recipe: no recipe 'smollm2'"),
        ({"fields": {"lora.rank": [4]}, "overrides": {"training.epochs": "many"}}, "training.epochs: expected"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, sweep: dict[str, Any], told: str) -> None:
    assert told in refusal(tmp_path, **sweep)


@pytest.mark.parametrize("search", [{"search": "grid"}, {"search": "random", "trials": 4}])
def test_values_that_the_recipe_refuses_together_are_told(tmp_path: Path, search: dict[str, Any]) -> None:
    plan = plan_of(tmp_path, fields={"data.test": [0.1, 0.7], "data.validation": [0.1, 0.5]}, **search)
    with pytest.raises(ConfigError, match=r"data.test 0\.7, data.validation 0\.5: .*leave less than a tenth") as caught:
        sample_points(plan)
    assert "problems" not in str(caught.value)  # the other three are good


def test_the_command_tells_a_mistake_before_anything_is_made(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields={"lora.rnk": [4]})
    result = CliRunner().invoke(main, ["sweep", str(path), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert (result.exit_code, result.output) == (
        1, "Error: sweep sweep.yaml: fields.lora.rnk: unknown field (did you mean 'lora.rank'?).\n"
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--cpus", "2"], ["--gpus", "1"]])
def test_what_a_trial_takes_of_a_cluster_needs_the_cluster(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["sweep", "sweep.yaml", *arguments]).exit_code == 2


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["sweep", "--ray", "sweep.yaml", "other.yaml"])
    assert result.exit_code == 1
    assert "--ray 'sweep.yaml': expected HOST:PORT" in result.output


def test_fields_that_change_the_rows_are_allowed_but_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, fields={"data.max_rows": [10, 20], "base.max_tokens": [64, 128], "lora.rank": [4]})
    assert [note.partition(" ")[0] for note in plan.notes] == ["data.max_rows", "base.max_tokens"]


def test_a_schedules_own_settings_are_fields_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, fields={"training.schedule_settings.num_cycles": [1, 2]})
    assert plan.recipe_of({"training.schedule_settings.num_cycles": 2}).training.schedule_settings == {"num_cycles": 2}


def test_every_field_of_the_section_has_its_help() -> None:
    output = CliRunner().invoke(main, ["sweep", "--help"]).output
    names = set(re.findall(r"^  ([a-z_.]+)  ", output, flags=re.MULTILINE))
    assert names >= {*(set(SweepSection.model_fields) - {"pruning"}), "pruning.kind", "pruning.reduction"}


# --- the study


RANGES = {
    "training.learning_rate": LEARNING_RATES,
    "lora.rank": {"low": 4, "high": 64, "step": 4},
    "lora.alpha": [8, 16],
}


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_sweep_that_is_broken_off_after_every_trial_tries_what_an_unbroken_one_does(
    tmp_path: Path, search: str
) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", search=search, trials=8, fields=RANGES)
    unbroken = claimed(open_sweep(path, tmp_path / "unbroken")[1])
    broken = []
    for _ in range(8):
        claim = open_sweep(path, tmp_path / "broken")[1].claim()
        assert claim is not None
        again = open_sweep(path, tmp_path / "broken")[1].claim()
        assert again is not None
        assert (again.number, again.settings, again.resumed) == (claim.number, claim.settings, True)
        broken.append(claim.settings)
        open_sweep(path, tmp_path / "broken")[1].finish(claim.number, float(claim.number))
    assert broken == unbroken
    assert len({json.dumps(settings) for settings in broken}) == 8
    assert open_sweep(path, tmp_path / "broken")[1].claim() is None


def test_what_is_drawn_lies_within_its_range(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", search="random", trials=40, fields=RANGES)
    drawn = claimed(open_sweep(path, tmp_path / "out")[1])
    rates = [settings["training.learning_rate"] for settings in drawn]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert sum(rate < 1e-4 for rate in rates) in range(10, 31)  # half of a logarithmic scale, a tenth of a linear one
    assert {settings["lora.rank"] for settings in drawn} <= set(range(4, 65, 4))
    assert {settings["lora.alpha"] for settings in drawn} == {8, 16}


def test_random_trials_over_lists_never_repeat(tmp_path: Path) -> None:
    fields = {"lora.rank": [4, 8, 16], "lora.alpha": [8, 16]}
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", search="random", trials=6, fields=fields)
    drawn = claimed(open_sweep(path, tmp_path / "out")[1])
    assert len({json.dumps(settings) for settings in drawn}) == 6


def test_another_seed_draws_other_settings(tmp_path: Path) -> None:
    draws = []
    for seed in (0, 1):
        path = write_sweep(
            tmp_path, "embedded:smollm2-135m-instruct", search="random", trials=3, seed=seed, fields=RANGES
        )
        draws.append(claimed(open_sweep(path, tmp_path / f"out{seed}")[1]))
    assert draws[0] != draws[1]


def test_tpe_goes_where_the_loss_is_low(tmp_path: Path) -> None:
    fields = {"lora.dropout": {"low": 0.0, "high": 0.9}}
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", search="tpe", trials=30, fields=fields)
    _, study = open_sweep(path, tmp_path / "out")
    tried = []
    while (claim := study.claim()) is not None:
        tried.append(claim.settings["lora.dropout"])
        study.finish(claim.number, (tried[-1] - 0.2) ** 2)
    early, late = (sum(abs(value - 0.2) for value in part) for part in (tried[:10], tried[-10:]))
    assert late < early / 2


def test_tpe_makes_no_settings_twice(tmp_path: Path) -> None:
    fields = {"lora.rank": [4, 8], "lora.alpha": [8, 16]}
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", search="tpe", trials=4, fields=fields)
    _, study = open_sweep(path, tmp_path / "out")
    made = claimed(study)
    assert len({json.dumps(settings) for settings in made}) == len(made)
    assert len(study.trials()) == 4


@pytest.mark.parametrize(
    ("pruning", "given_up"),
    [
        ("none", []),
        ({"kind": "median", "after_trials": 2}, [(3, 2), (4, 2), (5, 2)]),
        ({"kind": "median", "after_trials": 2, "after_validations": 2}, [(3, 3), (4, 3), (5, 3)]),
        ({"kind": "median", "after_trials": 4}, [(5, 2)]),
        ({"kind": "halving"}, [(2, 2), (3, 2), (4, 2), (5, 2)]),
    ],
)
def test_a_trial_that_does_worse_is_given_up(tmp_path: Path, pruning: Any, given_up: list[tuple[int, int]]) -> None:
    fields = {"lora.rank": [1, 2, 3, 4, 5]}  # the higher the worse
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields=fields, pruning=pruning)
    _, study = open_sweep(path, tmp_path / "out")
    found = []
    while (claim := study.claim()) is not None:
        for place in range(1, 5):
            if study.report(claim.number, 10 * place * claim.number, claim.number - place / 10):
                found.append((claim.number, place))
                study.prune(claim.number)
                break
        else:
            study.finish(claim.number, claim.number - 0.4)
    assert found == given_up


def test_a_validation_that_a_resumed_trial_measures_again_counts_once(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields={"lora.rank": [1]})
    _, study = open_sweep(path, tmp_path / "out")
    study.claim()
    for step in (10, 20, 10, 20, 30):
        study.report(1, step, step / 10)
    assert study.trials()[0].intermediate_values == {0: 1.0, 1: 2.0, 2: 3.0}


def test_a_half_written_line_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields={"lora.rank": [1, 2]})
    out = tmp_path / "out"
    _, study = open_sweep(path, out)
    study.claim()
    study.finish(1, 0.5)
    journal = out / JOURNAL_NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":6,"worker')
    (out / f"{JOURNAL_NAME}.lock").write_text("")  # of a process that was killed while it wrote
    repair_journal(out)
    assert journal.read_bytes() == whole
    claim = Study(out, stored_plan(out)).claim()
    assert claim is not None
    assert (claim.number, claim.settings) == (2, {"lora.rank": 2})


def test_a_study_that_was_killed_while_its_points_were_put_in_gets_the_others(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, "embedded:smollm2-135m-instruct", fields={"lora.rank": [1, 2, 3]})
    out = tmp_path / "out"
    open_sweep(path, out)
    lines = (out / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    (out / JOURNAL_NAME).write_bytes(b"".join(lines[:-1]))
    assert [settings["lora.rank"] for settings in claimed(open_sweep(path, out)[1])] == [1, 2, 3]


# --- the folder


def test_another_sweep_in_the_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "out"
    start_or_continue(out, plan_of(tmp_path, fields={"lora.rank": [4, 8]}))
    before = (out / "sweep.json").read_bytes()
    with pytest.raises(ArtifactError) as caught:
        start_or_continue(out, plan_of(tmp_path, fields={"lora.rank": [4, 16]}, training={"max_steps": 5}))
    assert str(caught.value) == (
        f"{out}: holds a sweep that was started with other settings (2 problems):\n"
        "  - sweep.fields.lora.rank: was [4, 8], is [4, 16]\n"
        "  - recipe.training.max_steps: was 4, is 5\n"
        "Restore them, choose another folder with --out, or remove this one."
    )
    assert (out / "sweep.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="not a sweep"):
        start_or_continue(out, plan_of(tmp_path, fields={"lora.rank": [4, 8]}))


def test_two_sweeps_never_work_in_one_folder(tmp_path: Path) -> None:
    with (
        sweep_lock(tmp_path),
        pytest.raises(ArtifactError, match="another process is making a sweep"),
        sweep_lock(tmp_path),
    ):
        pass
    with sweep_lock(tmp_path), trial_lock(tmp_path, 1), trial_lock(tmp_path, 2):
        pass


# --- the table


def row(number: int, state: str, loss: float | None, **settings: Any) -> Row:
    curve = () if loss is None else ((2, loss + 0.5), (4, loss))
    figures = TrialMetrics(1.25, curve, loss, {"rougeL": 0.31} if number == 1 else {}, 174.0, 2_270_000_000, 1234.5, 4)
    reason = "a|b\n<script>alert(1)</script>" if state == "failed" else ""
    return Row(number, settings, state, reason, Path(f"trials/trial-{number:03d}"), figures)


@pytest.fixture
def table() -> Table:
    fields = ("training.learning_rate", "data.reasoning", "lora.rslora")
    rows = [
        row(1, "finished", 1.5, **dict(zip(fields, (2e-4, "=1+1", True), strict=True))),
        row(2, "finished", 1.25, **dict(zip(fields, (0.000134893, "-a|b", False), strict=True))),
        row(3, "pruned", 1.0, **dict(zip(fields, (1e-3, "@c", False), strict=True))),
        row(4, "failed", None, **dict(zip(fields, (1e-3, "<b>", False), strict=True))),
    ]
    return Table("tiny", fields, tuple(rows), 6, ("a note",))


def test_the_best_trial_is_a_finished_one(table: Table) -> None:
    assert table.best is table.rows[1]


def test_the_markdown_table_is_as_published_runs_print_it(table: Table) -> None:
    lines = render_markdown(table).splitlines()
    assert lines[0] == "# tiny: 4 of 6 trials"
    assert lines[2] == (
        "| trial | learning_rate | reasoning | rslora | training loss | validation loss | held-out loss | ROUGE-L | time "
        "| peak memory | tokens/s | state |"
    )
    assert lines[4] == (
        "| 1 | 2e-4 | =1+1 | true | 1.2500 | 1.5000 | 1.5000 | 0.3100 | 2 min 54 s | 2.27 GB | 1,234 | finished |"
    )
    assert lines[5].startswith(r"| **2** | **1.349e-4** | **-a\|b** |")
    assert {line.count("|") - line.count(r"\|") for line in lines[2:8]} == {13}
    assert r"Trial 4 (failed): a\|b \<script\>alert(1)\</script\>  " in lines


def test_a_sweep_on_a_gpu_has_a_column_for_its_memory(table: Table) -> None:
    first = replace(table.rows[0], metrics=replace(table.rows[0].metrics, peak_gpu_bytes=7_000_000_000))
    lines = render_markdown(replace(table, rows=(first, *table.rows[1:]))).splitlines()
    assert "| peak memory | peak GPU memory | tokens/s |" in lines[2]
    assert "| 2.27 GB | 7.00 GB |" in lines[4]
    assert "GPU" not in render_markdown(table)


def test_a_trial_whose_training_went_wrong_is_marked_and_not_handed_on(table: Table, tmp_path: Path) -> None:
    rows = [replace(row, metrics=replace(row.metrics, warnings=("it is worse",))) for row in table.rows[:2]]
    marked = replace(table, rows=(*rows, *table.rows[2:]))
    assert "finished, WARNING" in render_text(marked)
    assert "WARNING of trial 2: it is worse." in render_markdown(marked)
    assert "Next:" in ending(table, tmp_path)
    assert "Next:" not in ending(marked, tmp_path)


def test_no_cell_of_the_csv_is_a_formula(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(table))))
    assert [each["data.reasoning"] for each in rows] == ["'=1+1", "'-a|b", "'@c", "<b>"]
    assert [each["best"] for each in rows] == ["", "yes", "", ""]
    assert rows[1]["training.learning_rate"] == "0.000134893"
    assert rows[3]["best_validation_loss_nats_per_token"] == ""
    assert rows[0]["peak_memory_bytes"] == "2270000000"
    assert rows[0]["run_folder"] == "trials/trial-001"


def test_the_text_table_has_aligned_columns_and_marks_the_best(table: Table) -> None:
    lines = render_text(table).splitlines()
    assert [line[0] for line in lines] == [" ", " ", "*", " ", " "]
    assert (
        len(
            {line.index(end) for line, end in zip(lines[1:], ("finished", "finished", "pruned", "failed"), strict=True)}
        )
        == 1
    )


def test_the_page_is_self_contained_and_runs_nothing(table: Table) -> None:
    page = render_page(table)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|https?://", page)
    assert page.count("<svg") == 2 + 3
    assert page.count("★ best") == 1
    assert "prefers-color-scheme: dark" in page


def test_a_table_of_nothing_yet_is_a_page_too() -> None:
    page = render_page(Table("tiny", ("lora.rank",), (), 3, ()))
    assert "No trial has finished." in page
    assert "<svg" not in page


def test_the_page_is_well_formed(table: Table) -> None:
    from defusedxml.ElementTree import fromstring

    for svg in re.findall(r"<svg.*?</svg>", render_page(table), flags=re.DOTALL):
        fromstring(svg)


def test_yaml_of_the_plan_reads_back(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, fields=RANGES, search="tpe", trials=5, pruning={"kind": "median", "after_trials": 3})
    start_or_continue(tmp_path / "out", plan)
    assert stored_plan(tmp_path / "out") == plan
    assert yaml.safe_load((tmp_path / "sweep.yaml").read_text())["trials"] == 5
