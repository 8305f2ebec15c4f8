"""Sweeps over the tiny model, for the tests: made in this process, or by the command."""

from pathlib import Path
from typing import Any

import yaml

from finetune.sweep.results import Table, read_table
from finetune.sweep.search_space import Plan, read_plan
from finetune.sweep.storage import start_or_continue
from finetune.sweep.study import Study, sample_points
from finetune.sweep.trial import run_trial
from gladstone.commands.progress import Silent
from tests.tiny_models import tiny_recipe, write_rows_file
from tests.warm_python import PYTHON


def finetune_command(*arguments: object, python: str = PYTHON) -> list[str]:
    """`finetune ARGUMENTS` in a process of its own."""
    return [python, "-c", "from finetune.cli import main; main()", *map(str, arguments)]


def write_sweep(folder: Path, base: Path | str, /, training: dict[str, Any] | None = None, **sweep: Any) -> Path:
    """SWEEP.yaml and the recipe that it names."""
    rows = write_rows_file(folder / "rows.jsonl")
    recipe = tiny_recipe(Path(base), rows, training=training or {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(folder / "tiny.yaml"), **sweep}, sort_keys=False))
    return path


def open_sweep(path: Path, folder: Path) -> tuple[Plan, Study]:
    """The plan and the study, as the command opens them."""
    plan = read_plan(path)
    start_or_continue(folder, plan)
    study = Study(folder, plan)
    study.enqueue(sample_points(plan))
    return plan, study


def make_here(path: Path, folder: Path) -> Table:
    """All trials in this process: no import is paid twice."""
    plan, study = open_sweep(path, folder)
    while (claim := study.claim()) is not None:
        run_trial(folder, claim.number, Silent())
    return read_table(folder, plan, study)
