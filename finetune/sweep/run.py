"""`finetune sweep`: from SWEEP.yaml to a folder of runs and the table that compares them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetune.sweep.child import run_child
from finetune.sweep.page import render_page
from finetune.sweep.ray_trials import Cluster, make_on_ray
from finetune.sweep.results import Row, Table, read_table
from finetune.sweep.search_space import Plan, phrase, read_plan
from finetune.sweep.storage import BEST_NAME, SWEEP_NAME, begin, identity, sweep_lock
from finetune.sweep.study import Study, draw_points, mend_journal
from finetune.sweep.table import render_csv, render_markdown
from gladstone.artifacts import remove_partials, write_json, write_text
from gladstone.errors import ToolError, listed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where trials are made: in this folder, here one after the other or on a Ray cluster."""

    folder: Path
    cluster: Cluster | None = None


def run_sweep(file: Path, place: Place, tell: Tell) -> Table:
    """Make the trials that are not made yet; the table is written whole after each.

    Raises ConfigError that lists every mistake of the file, ArtifactError if the folder holds another sweep, ToolError
    if all trials failed. A trial that fails by itself is noted in the table.
    """
    plan = read_plan(file)
    points = draw_points(plan)
    folder = place.folder.absolute()
    with sweep_lock(folder):
        begin(folder, plan)
        remove_partials(folder)
        mend_journal(folder)
        for note in plan.notes:
            tell(f"Note: {note}")
        study = Study(folder, plan)
        study.enlist(points)
        report = _Report(folder, plan, study, tell)
        if place.cluster is None:
            _make_in_turn(report)
        else:
            make_on_ray(folder, study, place.cluster, report.begun, report.ended)
        table = report.write()
    _check_any_finished(table)
    return table


class _Report:
    """Tells of each trial and keeps the table up to date."""

    def __init__(self, folder: Path, plan: Plan, study: Study, tell: Tell) -> None:
        self.folder, self.study = folder, study
        self._plan, self._tell = plan, tell

    def begun(self, number: int, again: bool) -> None:
        """A trial begins, or goes on after its process died."""
        settings = phrase(self.study.settings(number))
        self._tell(f"Trial {number} of {self._plan.total}: {settings}{' (goes on)' if again else ''}")

    def ended(self, number: int) -> None:
        """A trial ended, whatever its end."""
        table = self.write()
        row = next(row for row in table.rows if row.number == number)
        self._tell(f"Trial {number} of {self._plan.total}: {_outcome(table, row)}")

    def write(self) -> Table:
        """Write the table in all its forms, and which trial is best."""
        table = read_table(self.folder, self._plan, self.study)
        write_text(self.folder / "table.md", render_markdown(table))
        write_text(self.folder / "table.csv", render_csv(table))
        write_text(self.folder / "table.html", render_page(table))
        best = table.best
        if best is not None:
            recipe = self._plan.recipe_of(best.settings).model_dump(mode="json")
            comment = f"# trial {best.number} of a sweep: {phrase(best.settings)}\n"
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
            "validation_loss_nats_per_token": row.figures.validation_loss,
            "run_folder": row.folder.as_posix(),
            "recipe": BEST_NAME,
            "settings": row.settings,
        }


def _make_in_turn(report: _Report) -> None:
    while (claim := report.study.claim()) is not None:
        report.begun(claim.number, claim.begun)
        ended = run_child(report.folder, claim.number)
        if report.study.state(claim.number) == "RUNNING":  # it died before it could tell
            report.study.fail(claim.number, ended)
        report.ended(claim.number)


def _states(table: Table) -> list[dict[str, object]]:
    return [
        {"trial": row.number, "settings": row.settings, "state": row.state}
        | ({"reason": row.reason} if row.reason else {})
        for row in table.rows
    ]


def _outcome(table: Table, row: Row) -> str:
    if row.reason:
        return f"{row.state}: {row.reason}"
    loss = "" if row.figures.validation_loss is None else f", validation loss {row.figures.validation_loss:.4f}"
    return f"{row.state}{loss}{' (the best so far)' if row is table.best else ''}"


def _check_any_finished(table: Table) -> None:
    if table.rows and all(row.state == "failed" for row in table.rows):
        raise ToolError(listed("no trial could be made", [f"trial {row.number}: {row.reason}" for row in table.rows]))
