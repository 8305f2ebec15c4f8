"""`finetune sweep`: from SWEEP.yaml to a folder of runs and a table that compares them."""

from collections.abc import Callable
from pathlib import Path

import yaml

from finetune.sweep.child import run_child
from finetune.sweep.page import render_page
from finetune.sweep.ray_trials import Cluster, run_on_ray
from finetune.sweep.results import Row, Table, read_table
from finetune.sweep.search_space import Plan, describe_settings, read_plan
from finetune.sweep.storage import BEST_NAME, SWEEP_NAME, identity, start_or_continue, sweep_lock
from finetune.sweep.study import Study, repair_journal, sample_points
from finetune.sweep.table import render_csv, render_markdown
from gladstone.artifacts import remove_partials, write_json, write_text
from gladstone.errors import ToolError, listed
from gladstone.machine.gpu import Wanted

Echo = Callable[[str], None]


def run_sweep(file: Path, folder: Path, echo: Echo, cluster: Cluster | None = None, device: Wanted = "auto") -> Table:
    """Run the remaining trials, one after the other or on a Ray cluster, and rewrite the table after each.

    `device` is for trials without a cluster, which has its own.

    Raises ConfigError that lists every mistake of the file, ArtifactError if the folder holds another sweep, ToolError
    if all trials failed. A single failed trial is recorded in the table.
    """
    plan = read_plan(file)
    points = sample_points(plan)
    folder = folder.absolute()
    with sweep_lock(folder):
        start_or_continue(folder, plan)
        remove_partials(folder)
        repair_journal(folder)
        for note in plan.notes:
            echo(f"Note: {note}")
        study = Study(folder, plan)
        study.enqueue(points)
        report = _Report(folder, plan, study, echo)
        if cluster is None:
            _run_in_sequence(report, device)
        else:
            run_on_ray(folder, study, cluster, report.on_trial_start, report.on_trial_end)
        table = report.write()
    _check_any_finished(table)
    return table


class _Report:
    """Reports each trial and keeps the table up to date."""

    def __init__(self, folder: Path, plan: Plan, study: Study, echo: Echo) -> None:
        self.folder, self.study = folder, study
        self._plan, self._echo = plan, echo

    def on_trial_start(self, number: int, again: bool) -> None:
        """Report that a trial starts, or continues after its process died."""
        settings = describe_settings(self.study.settings(number))
        self._echo(f"Trial {number} of {self._plan.total}: {settings}{' (continues)' if again else ''}")

    def on_trial_end(self, number: int) -> None:
        """Report how a trial ended, and write the table."""
        table = self.write()
        row = next(row for row in table.rows if row.number == number)
        self._echo(f"Trial {number} of {self._plan.total}: {_describe_outcome(table, row)}")

    def write(self) -> Table:
        """Write the table as Markdown, CSV and HTML, and the recipe of the best trial."""
        table = read_table(self.folder, self._plan, self.study)
        write_text(self.folder / "table.md", render_markdown(table))
        write_text(self.folder / "table.csv", render_csv(table))
        write_text(self.folder / "table.html", render_page(table))
        best = table.best
        if best is not None:
            recipe = self._plan.recipe_of(best.settings).model_dump(mode="json")
            comment = f"# trial {best.number} of a sweep: {describe_settings(best.settings)}\n"
            write_text(self.folder / BEST_NAME, comment + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        write_json(
            self.folder / SWEEP_NAME, identity(self._plan) | {"best": self._best(best), "trials": _states(table)}
        )
        return table

    def _best(self, row: Row | None) -> dict[str, object] | None:
        if row is None:
            return None
        return {
            "trial": row.number,
            "validation_loss_nats_per_token": row.metrics.validation_loss,
            "run_folder": row.folder.as_posix(),
            "recipe": BEST_NAME,
            "settings": row.settings,
        }


def _run_in_sequence(report: _Report, device: Wanted) -> None:
    while (claim := report.study.claim()) is not None:
        report.on_trial_start(claim.number, claim.resumed)
        ended = run_child(report.folder, claim.number, device)
        if report.study.state(claim.number) == "RUNNING":  # it died before it could record its state
            report.study.fail(claim.number, ended)
        report.on_trial_end(claim.number)


def _states(table: Table) -> list[dict[str, object]]:
    return [
        {"trial": row.number, "settings": row.settings, "state": row.state}
        | ({"reason": row.reason} if row.reason else {})
        for row in table.rows
    ]


def _describe_outcome(table: Table, row: Row) -> str:
    if row.reason:
        return f"{row.state}: {row.reason}"
    loss = "" if row.metrics.validation_loss is None else f", validation loss {row.metrics.validation_loss:.4f}"
    return f"{row.state}{loss}{' (the best so far)' if row is table.best else ''}"


def _check_any_finished(table: Table) -> None:
    if table.rows and all(row.state == "failed" for row in table.rows):
        raise ToolError(listed("all trials failed", [f"trial {row.number}: {row.reason}" for row in table.rows]))
