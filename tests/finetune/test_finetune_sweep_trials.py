"""Sweeps that train: what becomes of a trial, and of a sweep that is stopped or killed in the middle of one."""

import csv
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from finetune.cli import main
from finetune.config.load import load_recipe
from finetune.sweep.results import Table
from finetune.sweep.run import run_sweep
from gladstone.artifacts import check_files, read_manifest
from gladstone.errors import ToolError
from tests.finetune.sweeps import finetune_command, make_here, write_sweep
from tests.stopped import wait_until
from tests.waiting import PATIENCE_S

pytest.importorskip("optuna", reason="the extra finetune is not installed whole")
pytestmark = pytest.mark.usefixtures("warm_children")

LONG = {"max_steps": 30, "checkpoint_steps": 1, "evaluations": 4}  # long enough to stop it in the middle
# of a trial without Ray; under Ray a trial has as many threads as processors, and sums differ with their number
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TWO_RATES = {"training.learning_rate": [5e-3, 1e-3]}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def steps_are_made(run: Path, count: int = 5) -> bool:
    return len(lines(run / "checkpoints" / "metrics.jsonl")) >= count


def measured(run: Path) -> list[tuple[float, ...]]:
    """All losses of a finished run, without the times."""
    found = [json.loads(line) for line in lines(run / "metrics.jsonl")]
    return [(line["step"], line["loss_nats_per_token"]) for line in found]


# --- in this process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Table]:
    """A sweep with trials of every end: the second and fourth ask for more rows than there are."""
    folder = tmp_path_factory.mktemp("sweep")
    path = write_sweep(
        folder,
        tiny_base,
        training={"max_steps": 8, "evaluations": 4},
        fields={"training.learning_rate": [5e-3, 1e-7], "training.batch_size": [4, 400]},
        pruning={"kind": "median", "after_trials": 1},
    )
    return folder / "out", make_here(path, folder / "out")


def test_each_trial_ends_by_itself_and_the_sweep_goes_on(made: tuple[Path, Table]) -> None:
    assert [row.state for row in made[1].rows] == ["finished", "failed", "pruned", "failed"]


def test_a_finished_trial_is_a_run_folder_like_any_other(made: tuple[Path, Table]) -> None:
    run = made[0] / "trials" / "trial-001"
    manifest = read_manifest(run)
    check_files(run, manifest)
    assert manifest.config["name"] == "tiny-001"
    assert manifest.config["training"]["learning_rate"] == 5e-3
    figures = made[1].rows[0].metrics
    facts = manifest.facts
    assert figures.validation_loss == min(loss for _, loss in facts["validation_loss"])
    assert (figures.held_out_loss, figures.train_s, figures.peak_memory_bytes, figures.tokens_per_s, figures.steps) == (
        facts["held_out_loss_after"], facts["train_s"], facts["peak_memory_bytes"], facts["tokens_per_s"], 8
    )  # fmt: skip
    assert figures.training_loss == measured(run)[-2][1]  # the last of 8 steps; the validation comes after it


def test_a_failed_trial_tells_why(made: tuple[Path, Table]) -> None:
    row = made[1].rows[1]
    assert row.reason.startswith("a step takes 400 rows")
    assert row.metrics.validation_loss is None


def test_a_pruned_trial_keeps_its_figures_and_no_checkpoint(made: tuple[Path, Table]) -> None:
    row, run = made[1].rows[2], made[0] / "trials" / "trial-003"
    assert row.metrics.steps == 4
    assert [step for step, _ in row.metrics.validation] == [2, 4]
    assert row.metrics.tokens_per_s is not None
    assert row.metrics.peak_memory_bytes is not None
    assert not (run / "checkpoints").exists()
    assert not (run / "manifest.json").exists()


def test_a_librarys_refusal_fails_the_trial_and_leaves_its_traceback(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.optim import AdamW

    def refuse(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("odd settings")

    monkeypatch.setattr(AdamW, "step", refuse)
    table = make_here(write_sweep(tmp_path, tiny_base, fields={"lora.rank": [4]}), tmp_path / "out")
    trace = tmp_path / "out" / "trials" / "trial-001" / "error.txt"
    assert (table.rows[0].state, table.rows[0].reason) == ("failed", f"ZeroDivisionError: odd settings (see {trace})")
    assert "in refuse" in trace.read_text()


# --- by the command, each trial in its own process


def sweep(path: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["sweep", str(path), "--out", str(out), *options], catch_exceptions=False)


def start(path: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        finetune_command("sweep", path, "--out", out, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Path, Result]:
    """SWEEP.yaml, its sweep of two longer trials by one command, and what that printed."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = write_sweep(folder, tiny_base, training=LONG, fields=TWO_RATES)
    result = sweep(path, folder / "out")
    assert result.exit_code == 0, result.output
    return path, folder / "out", result


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(lines(folder / "table.csv")))


def check_equal(one: Path, other: Path) -> None:
    """Both sweeps are whole, with the same losses to the last bit."""
    for number in (1, 2):
        runs = [folder / "trials" / f"trial-00{number}" for folder in (one, other)]
        assert measured(runs[0]) == measured(runs[1])
        check_files(runs[1], read_manifest(runs[1]))
    tables = [table_of(folder) for folder in (one, other)]
    losses = [[row["best_validation_loss_nats_per_token"] for row in rows] for rows in tables]
    assert losses[0] == losses[1]
    assert [row["state"] for row in tables[1]] == ["finished", "finished"]


@pytest.mark.slow
def test_the_command_ends_with_the_table_and_what_to_do_next(unbroken: tuple[Path, Path, Result]) -> None:
    _, out, result = unbroken
    printed = result.stdout.splitlines()
    assert printed[0].split() == [
        "trial", "learning_rate", "training", "loss", "validation", "loss", "held-out", "loss", "time", "peak",
        "memory", "tokens/s", "state",
    ]  # fmt: skip
    assert [line[0] for line in printed[1:3]] == ["*", " "]
    assert re.fullmatch(r"Best: trial 1, validation loss \d+\.\d{4}\.", printed[4])
    assert printed[5:] == [
        f"Table: {out}/table.md, also .csv and .html",
        f"Best recipe: {out}/best.yaml",
        f"Next: gladstone export gguf {out}/trials/trial-001",
    ]
    assert "Trial 2 of 2: training.learning_rate 1e-3\n" in result.stderr


@pytest.mark.slow
def test_the_best_trial_is_recorded_and_its_recipe_is_one(unbroken: tuple[Path, Path, Result]) -> None:
    path, out, _ = unbroken
    best = json.loads((out / "sweep.json").read_text())["best"]
    assert (best["trial"], best["run_folder"], best["recipe"]) == (1, "trials/trial-001", "best.yaml")
    expected = load_recipe(str(path.with_name("tiny.yaml")), ["training.learning_rate=5e-3"])
    assert load_recipe(str(out / "best.yaml"), []) == expected


@pytest.mark.slow
def test_a_finished_sweep_makes_nothing_again(unbroken: tuple[Path, Path, Result]) -> None:
    path, out, first = unbroken
    before = (out / "trials" / "trial-001" / "manifest.json").stat().st_mtime_ns
    again = sweep(path, out)
    assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")
    assert (out / "trials" / "trial-001" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_changed_file_is_refused(unbroken: tuple[Path, Path, Result], tmp_path: Path, tiny_base: Path) -> None:
    _, out, _ = unbroken
    other = write_sweep(tmp_path, tiny_base, training=LONG, fields={"training.learning_rate": [5e-3, 1e-2]})
    result = sweep(other, out)
    assert result.exit_code == 1
    assert "sweep.fields.training.learning_rate: was [0.005, 0.001], is [0.005, 0.01]" in result.output


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_saves_the_trial_and_the_same_command_finishes_it(
    unbroken: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    path, whole, _ = unbroken
    out = tmp_path / "out"
    run = out / "trials" / "trial-001"
    child = start(path, out)
    wait_until(partial(steps_are_made, run), child)
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, printed) == (130, ""), errors
    assert errors.endswith("\nStopped. The same command again finishes the work.\n")
    assert "Traceback" not in errors
    kept = lines(run / "checkpoints" / "metrics.jsonl")
    assert len(kept) >= 5
    result = sweep(path, out)
    assert result.exit_code == 0, result.output
    assert lines(run / "metrics.jsonl")[: len(kept)] == kept  # with its times: those steps were not made again
    check_equal(whole, out)


@pytest.mark.slow
def test_a_sweep_that_is_killed_in_mid_trial_goes_on(unbroken: tuple[Path, Path, Result], tmp_path: Path) -> None:
    path, whole, _ = unbroken
    out = tmp_path / "out"
    run = out / "trials" / "trial-002"
    parent = start(path, out)
    wait_until(partial(steps_are_made, run), parent)
    trials = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    for trial in trials:
        trial.kill()
    parent.communicate()
    psutil.wait_procs(trials, timeout=PATIENCE_S)
    first = lines(out / "trials" / "trial-001" / "metrics.jsonl")
    kept = lines(run / "checkpoints" / "metrics.jsonl")[:4]
    result = sweep(path, out)
    assert result.exit_code == 0, result.output
    assert "Trial 1 of 2" not in result.stderr
    assert lines(out / "trials" / "trial-001" / "metrics.jsonl") == first
    assert lines(run / "metrics.jsonl")[:4] == kept
    check_equal(whole, out)


@pytest.mark.slow
@pytest.mark.long
def test_the_trial_of_a_killed_sweep_stops_by_itself(unbroken: tuple[Path, Path, Result], tmp_path: Path) -> None:
    path, whole, _ = unbroken
    out = tmp_path / "out"
    run = out / "trials" / "trial-001"
    parent = start(path, out)
    wait_until(partial(steps_are_made, run), parent)
    trials = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    result = sweep(path, out)  # at once, while the trial's process may still be saving
    parent.communicate()
    assert result.exit_code == 0, result.output
    assert not psutil.wait_procs(trials, timeout=PATIENCE_S)[1]
    check_equal(whole, out)


@pytest.mark.slow
@pytest.mark.long
def test_a_trial_that_is_killed_fails_alone(tmp_path: Path, tiny_base: Path) -> None:
    path = write_sweep(tmp_path, tiny_base, training=LONG, fields=TWO_RATES)
    out = tmp_path / "out"
    parent = start(path, out)
    wait_until(partial(steps_are_made, out / "trials" / "trial-001"), parent)
    (trial,) = psutil.Process(parent.pid).children()
    trial.kill()
    printed, errors = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 0, errors
    assert "Trial 1 (failed): its process ended with SIGKILL: did memory run out?" in printed
    assert [row["state"] for row in table_of(out)] == ["failed", "finished"]


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_whose_trials_all_fail_is_an_error(tmp_path: Path, tiny_base: Path) -> None:
    path = write_sweep(tmp_path, tiny_base, fields={"training.batch_size": [400, 500]})
    told: list[str] = []
    with pytest.raises(ToolError) as caught:
        run_sweep(path, tmp_path / "out", told.append)
    assert str(caught.value).splitlines()[0] == "all trials failed (2 problems):"
    assert "trial 2: a step takes 500 rows" in str(caught.value)
    assert told[1].startswith("Trial 1 of 2: failed: a step takes 400 rows")
    assert "failed" in (tmp_path / "out" / "table.md").read_text()


# --- on a Ray cluster


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of two workers on this machine, each with one processor."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the extra ray is not installed")
    head = {"num_cpus": THREADS, "include_dashboard": False, "object_store_memory": 10**8}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=THREADS, object_store_memory=10**8)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def worker_of(run: Path) -> psutil.Process | None:
    """The process that holds a trial's lock."""
    lock = str(run.with_name(f".{run.name}.lock"))
    for process in psutil.process_iter():
        try:
            if lock in {file.path for file in process.open_files()}:
                return process
        except psutil.Error:  # ended meanwhile
            continue
    return None


@pytest.mark.slow
@pytest.mark.long
def test_a_trial_whose_ray_worker_is_killed_goes_on_in_another(
    unbroken: tuple[Path, Path, Result], tmp_path: Path, cluster: str
) -> None:
    path, whole, _ = unbroken
    out = tmp_path / "out"
    run = out / "trials" / "trial-001"
    command = start(path, out, "--ray", cluster, "--cpus", str(THREADS))
    wait_until(partial(steps_are_made, run), command)
    worker = worker_of(run)
    assert worker is not None
    assert worker.pid != command.pid
    kept = lines(run / "checkpoints" / "metrics.jsonl")[:4]
    worker.kill()
    printed, errors = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, errors
    assert lines(run / "metrics.jsonl")[:4] == kept
    check_equal(whole, out)
    assert printed.count("finished") == 2


@pytest.mark.slow
@pytest.mark.long
def test_a_cluster_without_room_for_a_trial_is_told(tmp_path: Path, tiny_base: Path, cluster: str) -> None:
    path = write_sweep(tmp_path, tiny_base, fields={"lora.rank": [4]})
    command = start(path, tmp_path / "out", "--ray", cluster, "--cpus", str(THREADS + 1))
    _, errors = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1
    assert f"Error: --ray {cluster}: a trial needs {THREADS + 1} processors and 0 GPUs" in errors
