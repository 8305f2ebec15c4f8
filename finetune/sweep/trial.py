"""One trial: a run of its own folder that tells the study how it goes, wherever it is made."""

import shutil
import traceback
from datetime import datetime
from pathlib import Path

from finetune.config.schema import Recipe
from finetune.monitor.callbacks import Callback
from finetune.sweep.storage import SWEEP_NAME, stored_plan, trial_folder, trial_lock
from finetune.sweep.study import Study
from finetune.train.checkpoint import FOLDER as CHECKPOINTS
from finetune.train.checkpoint import saved
from gladstone import run_folder
from gladstone.artifacts import is_finished, read_manifest, write_text
from gladstone.commands.progress import Progress
from gladstone.errors import DataError, GladstoneError
from gladstone.machine.host import peak_memory_bytes

ERROR_NAME = "error.txt"


class _PrunedError(Exception):
    """The study gives the trial up."""


class _Reporter(Callback):
    """Reports each validation loss to the study."""

    def __init__(self, study: Study, number: int) -> None:
        self._study, self._number = study, number

    def on_validation_end(self, step: int, loss: float) -> None:
        """Raises _PrunedError if the trial is worse than the others."""
        if self._study.judge(self._number, step, loss):
            raise _PrunedError


def make_trial(folder: Path, number: int, progress: Progress) -> None:
    """Make the trial, or go on with it, and tell the study what became of it.

    Raises KeyboardInterrupt if the user stopped it: its checkpoint is saved, and it counts as under way.
    """
    plan, out = stored_plan(folder), trial_folder(folder, number)
    study = Study(folder, plan)
    with trial_lock(folder, number):
        if study.state(number) != "RUNNING":  # the process of a killed sweep has finished it meanwhile
            return
        try:
            recipe = plan.recipe_of(study.settings(number), number)
            study.finish(number, _lowest_loss(recipe, out, _Reporter(study, number), progress))
        except _PrunedError:
            study.prune(number, peak_memory_bytes())
            _keep_metrics(out)
        except GladstoneError as error:
            study.fail(number, str(error))
        except Exception as error:  # noqa: BLE001 - a library's refusal of odd settings must not end the night's work
            write_text(out / ERROR_NAME, traceback.format_exc())
            study.fail(number, f"{type(error).__name__}: {error} (see {out / ERROR_NAME})")


def _lowest_loss(recipe: Recipe, out: Path, reporter: _Reporter, progress: Progress) -> float:
    # all trials write the date on which their sweep began: else their losses are of different rows
    began = datetime.fromtimestamp(int((out.parents[1] / SWEEP_NAME).stat().st_mtime))
    if not is_finished(out):
        from finetune.run import run
        from finetune.train.session import CallOptions

        begun = bool(saved(out / CHECKPOINTS))
        if run(recipe, out, progress, CallOptions(resume=begun, callbacks=(reporter,), began=began)).stopped:
            raise KeyboardInterrupt
    validation = read_manifest(out).facts["validation_loss"]
    if not validation:
        raise DataError(f"{out}: the run measured no validation loss.")
    return float(min(loss for _, loss in validation))


def _keep_metrics(out: Path) -> None:
    """Of a trial that nobody will go on with only its figures stay, not its checkpoints."""
    metrics = out / CHECKPOINTS / run_folder.METRICS
    if metrics.is_file():
        metrics.replace(out / run_folder.METRICS)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
