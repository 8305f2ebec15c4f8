import csv
import io
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli import main
from finetune.monitor.metrics_log import History, read_history
from finetune.reports.compare.charts import curves_svg, training_curves, validation_curves
from finetune.reports.compare.page import FILES, render_page
from finetune.reports.compare.runs import flat, labels, read_run, read_runs
from finetune.reports.compare.table import Comparison, compare
from finetune.reports.compare.text import render_csv, render_markdown, render_terminal
from gladstone.errors import ArtifactError, ConfigError
from gladstone.report.durations import duration
from tests.finetune.histories import made_up_history, write_finished_run, write_run_under_way

Made = Callable[..., Path]
RECIPE: dict[str, Any] = {"name": "tiny", "lora": {"rank": 8, "targets": ["q_proj"]}, "training": {"seed": 0}}


def finetune(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def run(tmp_path: Path) -> Made:
    """Makes a finished run of a name, with these facts; `rank`, `seed` and `steps` change its recipe and history."""

    def make(name: str, rank: int = 8, steps: int = 40, **facts: Any) -> Path:
        config = RECIPE | {"name": name, "lora": {"rank": rank, "targets": ["q_proj"]}}
        return write_finished_run(tmp_path / name, made_up_history(steps, seed=rank), config, **facts)

    return make


def compared(*folders: Path) -> Comparison:
    return compare(read_runs(folders))


def value(comparison: Comparison, name: str, place: int) -> Any:
    return next(row.values[place] for row in comparison.results if row.name == name)


def test_only_settings_that_differ_are_listed_and_names_are_none(run: Made) -> None:
    comparison = compared(run("a", 8), run("b", 16))
    assert [(row.name, row.texts) for row in comparison.settings] == [("lora.rank", ("8", "16"))]


def test_a_setting_that_a_run_lacks_is_told_as_not_set(run: Made, tmp_path: Path) -> None:
    config = RECIPE | {"training": {"seed": 0, "patience": None}}
    other = write_finished_run(tmp_path / "b", made_up_history(5), config)
    assert [(row.name, row.texts) for row in compared(run("a"), other).settings] == [
        ("training.patience", ("not set", "null"))
    ]


def test_findings_are_those_of_manifest_and_metrics(run: Made) -> None:
    comparison = compared(run("a"), run("b", held_out_loss_after=2.5))
    history = read_history(comparison.runs[0].folder / "metrics.jsonl")
    assert value(comparison, "steps", 0) == 40
    assert value(comparison, "tokens trained", 0) == history.tokens
    assert value(comparison, "validation loss, best", 0) == min(loss for _, loss in history.validation)
    assert value(comparison, "best at step", 0) == 40
    assert value(comparison, "held-out loss, change", 1) == pytest.approx(2.5 - 3.9)
    assert value(comparison, "held-out perplexity after", 1) == pytest.approx(math.exp(2.5))
    assert value(comparison, "tokens/s", 0) == pytest.approx(
        history.tokens / sum(stats.step_s for stats in history.steps)
    )
    assert value(comparison, "padding share", 0) == pytest.approx(0.04)
    assert value(comparison, "peak memory", 0) == 1_234_567_890
    assert value(comparison, "device", 0) == "cpu"


def test_the_memory_of_a_gpu_stands_beside_that_of_the_host_where_one_was_used(run: Made) -> None:
    gpu = {"name": "Tesla T4", "total_bytes": 15_828_320_256, "peak_allocated_bytes": 7_000_000_000,
           "peak_reserved_bytes": 7_500_000_000}  # fmt: skip
    comparison = compared(run("a"), run("b", device="cuda", gpu_memory=gpu))
    assert value(comparison, "peak memory", 1) == 1_234_567_890
    assert value(comparison, "peak GPU memory, in tensors", 1) == 7_000_000_000
    assert value(comparison, "peak GPU memory, reserved", 1) == 7_500_000_000
    assert value(comparison, "GPU", 1) == "Tesla T4"
    assert value(comparison, "GPU", 0) is None
    names = [row.name for row in compared(run("c"), run("d", gpu_memory=None)).results]
    assert not any("GPU" in name for name in names)  # a run folder of an earlier version, and one of a CPU


def test_a_run_under_way_is_read_from_its_recipe_and_metrics(run: Made, tmp_path: Path) -> None:
    folder = write_run_under_way(tmp_path / "b", made_up_history(12, validations=3), RECIPE | {"lora": {"rank": 4}})
    metrics = folder / "checkpoints" / "metrics.jsonl"
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"kind": "sample", "step": 12, "prompt": "a\u2028b", "text": "c\x85d"}\n{"kind": "step", "ste')
    comparison = compared(run("a"), folder)
    assert value(comparison, "state", 1) == "not finished"
    assert value(comparison, "steps", 1) == 12
    assert value(comparison, "held-out loss after", 1) is None
    warnings = "\n".join(comparison.warnings)
    assert "Not finished: b." in warnings
    assert "The base model is unknown for b and may differ." in warnings


def test_what_cannot_be_read_in_the_middle_of_the_metrics_is_an_error(run: Made) -> None:
    folder = run("a")
    metrics = folder / "metrics.jsonl"
    metrics.write_text("broken\n" + metrics.read_text())
    with pytest.raises(ArtifactError, match=rf"{re.escape(str(metrics))}:1: damaged"):
        read_run(folder, "a")


@pytest.mark.parametrize(
    ("facts", "subject"),
    [
        ({"base": "other"}, "base models differ"),
        ({"template": "other"}, "chat templates differ"),
        ({"test_question": "What is a cough?"}, "test rows differ"),
    ],
)
def test_an_unfair_comparison_is_told(run: Made, facts: dict[str, str], subject: str) -> None:
    fair = compared(run("a"), run("b"))
    assert len(fair.warnings) == 1
    assert "bench run" in fair.warnings[0]
    unfair = compared(run("a"), run("c", **facts))
    assert unfair.warnings[1:] == fair.warnings
    assert subject in unfair.warnings[0]


def test_a_run_whose_training_went_wrong_is_marked(run: Made) -> None:
    wrong = {"kind": "no gradient", "text": "the gradient was 0", "serious": True, "figures": {}}
    compared_runs = compared(run("good"), run("bad", warnings=[wrong, {**wrong, "kind": "memory", "serious": False}]))
    assert value(compared_runs, "WARNING", 1) == "no gradient"
    assert "WARNING of bad: the gradient was 0." in compared_runs.warnings


def test_another_tokenizer_is_told(run: Made, tmp_path: Path) -> None:
    first, second = run("a"), run("b")
    manifest = second / "manifest.json"
    text = manifest.read_text()
    digest = re.search(r'"tokenizer/tokenizer.json",\s+"sha256": "(\w+)"', text)
    assert digest is not None
    manifest.write_text(text.replace(digest.group(1), "0" * 64))
    assert compared(first, second).warnings[0].startswith("The tokenizers differ")


def test_every_folder_that_is_no_run_is_named_in_one_error(run: Made, tmp_path: Path) -> None:
    export = run("export", stage="export")
    (tmp_path / "empty").mkdir()
    under_way = write_run_under_way(tmp_path / "early", History(), RECIPE)
    missing = tmp_path / "missing"
    result = finetune("compare", run("a"), export, tmp_path / "empty", under_way, missing)
    assert result.exit_code == 1
    title, *problems = result.output.splitlines()
    assert "(4 problems)" in title
    for problem, (folder, fact) in zip(
        problems,
        [(export, "'export'"), (tmp_path / "empty", "manifest.json"), (under_way, "step"), (missing, "no such folder")],
        strict=True,
    ):
        assert problem.startswith(f"  - {folder}: ")
        assert fact in problem
    assert "checkpoints/metrics.jsonl" in problems[1]


def test_one_run_and_the_same_run_twice_are_refused(run: Made, tmp_path: Path) -> None:
    folder = run("a")
    (tmp_path / "link").symlink_to(folder)
    assert "at least two runs" in finetune("compare", folder).output
    for again in (folder, tmp_path / "link", folder / ".." / "a"):
        result = finetune("compare", folder, again)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {again}: given twice.")
    with pytest.raises(ConfigError):
        read_runs([folder])


def test_the_command_prints_a_plain_table_and_writes_the_files(run: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = finetune("compare", run("a", 8), run("b", 16), "--out", out)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert re.search(r"^ +a +b$", result.output, re.MULTILINE)
    assert re.search(r"^lora\.rank +8 +16$", result.output, re.MULTILINE)
    assert re.search(r"^held-out loss before +3\.9000 +3\.9000$", result.output, re.MULTILINE)
    assert "`bench run`" in result.output
    assert result.output.endswith("Written:\n" + "".join(f"  {out / name}\n" for name in FILES))
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG\r\n")


@given(st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for line in render_terminal(made_up_comparison(), width, colours=False).splitlines():
        assert len(line) <= width


def test_a_wide_terminal_gets_columns_and_a_narrow_one_gets_a_block_for_each_run() -> None:
    wide, narrow = (render_terminal(made_up_comparison(), width, colours=False) for width in (120, 40))
    assert re.search(r"^state +finished +finished$", wide, re.MULTILINE)
    assert narrow.count("  state: finished\n") == 2
    assert "\x1b[" in render_terminal(made_up_comparison(), 120, colours=True)


def made_up_comparison(first: str = "a", setting: str = "x") -> Comparison:
    from finetune.reports.compare.runs import Run

    facts = {"rows": {"train": 320, "validation": 40, "test": 40}, "held_out_loss_after": 1.9, "peak_memory_bytes": 12}
    runs = [
        Run(label, Path(label), True, {"note": note}, made_up_history(30), facts)
        for label, note in ((first, setting), ("b", "y"))
    ]
    return compare(runs)


HOSTILE = "=HYPERLINK(\"http://a\")<script>alert(1)</script>\x1b]0;x\x07 [bold]|$x$ & 'q'\u202e\n- b"


def test_no_text_of_a_run_becomes_markup_or_steers_a_terminal() -> None:
    comparison = made_up_comparison(HOSTILE, HOSTILE)
    terminal = render_terminal(comparison, None, colours=True)
    assert not re.search(r"\x1b(?!\[[\d;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202e]", terminal)
    assert "[bold]" in render_terminal(comparison, None, colours=False)
    page = render_page(comparison)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    markdown = render_markdown(comparison)
    assert r"\<script\>" in markdown
    assert all(line.count(" | ") - line.count(r"\| ") <= 3 for line in markdown.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", " =1", "\r=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    rows = list(csv.reader(io.StringIO(render_csv(made_up_comparison("a", text)))))
    assert rows[1][2].startswith("'")
    assert len({len(row) for row in rows}) == 1


def test_the_csv_has_numbers_in_full_with_their_units(run: Made) -> None:
    comparison = compared(run("a"), run("b", held_out_loss_after=5.0))
    rows = list(csv.DictReader(io.StringIO(render_csv(comparison))))
    assert rows[1]["held-out loss, change (nats per answer token)"] == repr(5.0 - 3.9)
    assert rows[0]["peak memory (bytes)"] == "1234567890"
    assert rows[0]["training time (s)"] == "612.0"
    assert rows[0]["run"] == "a"


def test_the_page_is_whole_and_asks_for_nothing(run: Made) -> None:
    page = render_page(compared(run("a"), run("b", 16), run("c", steps=1)))
    assert "default-src 'none'" in page
    assert not re.search(r"<script|https?:|url\(|<link|<img|@import", page)
    assert "prefers-color-scheme: dark" in page
    drawn = re.findall(r"<svg viewBox.*?</svg>", page)
    assert len(drawn) == 2
    for svg in drawn:
        assert len(list(ElementTree.fromstring(svg).iter("polyline"))) == 3


def test_curves_stay_inside_their_picture_and_end_where_the_run_ends(run: Made) -> None:
    runs = compared(run("a"), run("b", steps=7)).runs
    lines = training_curves(runs)
    assert [line.points[-1][0] for line in lines] == [40, 7]
    for line in ElementTree.fromstring(curves_svg("t", lines)).iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 64 <= x <= 704
            assert 24 <= y <= 256


def test_runs_without_validation_have_no_validation_curve(run: Made, tmp_path: Path) -> None:
    quiet = [write_finished_run(tmp_path / name, made_up_history(3, validations=0), RECIPE) for name in "ab"]
    comparison = compared(*quiet)
    assert curves_svg("t", validation_curves(comparison.runs)) == ""
    result = finetune("compare", *quiet, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_labels_are_as_long_as_it_takes_to_tell_runs_apart() -> None:
    assert labels([Path("x/a"), Path("y/b")]) == ["a", "b"]
    assert labels([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]


def test_lists_stay_whole_when_settings_are_flattened() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


@pytest.mark.parametrize(("seconds", "text"), [(9.96, "10.0 s"), (90.5, "1 min 30 s"), (7384, "2 h 3 min")])
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_twenty_thousand_steps_make_a_small_page(tmp_path: Path) -> None:
    runs = compared(*(write_finished_run(tmp_path / name, made_up_history(20000), RECIPE) for name in "ab"))
    assert sys.getsizeof(render_page(runs)) < 60_000


def test_no_two_of_eighteen_runs_are_drawn_alike(run: Made) -> None:
    svg = curves_svg("t", training_curves(compared(*(run(f"run-{number}", steps=2) for number in range(18))).runs))
    lines = ElementTree.fromstring(svg).iter("polyline")
    assert len({(line.get("style"), line.get("stroke-dasharray")) for line in lines}) == 18
