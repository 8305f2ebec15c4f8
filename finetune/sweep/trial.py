"""One trial: a training run in its own folder that reports its progress to the study."""

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
from gladstone.machine.gpu import Wanted
from gladstone.machine.host import peak_memory_bytes

ERROR_NAME = "error.txt"


class _PrunedError(Exception):
    """The study pruned the trial."""


class _StudyCallback(Callback):
    """Reports each validation loss to the study."""

    def __init__(self, study: Study, number: int) -> None:
        self._study, self._number = study, number

    def on_validation_end(self, step: int, loss: float) -> None:
        """Raises _PrunedError if the study prunes the trial."""
        if self._study.report(self._number, step, loss):
            raise _PrunedError


def run_trial(folder: Path, number: int, progress: Progress, device: Wanted = "auto") -> None:
    """Run or continue a trial on this device and record its outcome in the study.

    Raises KeyboardInterrupt if the user stopped it: a checkpoint is saved, and the trial still counts as running.
    """
    plan, out = stored_plan(folder), trial_folder(folder, number)
    study = Study(folder, plan)
    with trial_lock(folder, number):
        if study.state(number) != "RUNNING":  # a process left over from a killed sweep has finished it meanwhile
            return
        try:
            recipe = plan.recipe_of(study.settings(number), number)
            study.finish(number, _train(recipe, out, _StudyCallback(study, number), progress, device))
        except _PrunedError:
            study.prune(number, peak_memory_bytes())
            _keep_only_metrics(out)
        except GladstoneError as error:
            study.fail(number, str(error))
        except Exception as error:  # noqa: BLE001 - a library's refusal of odd settings must not end the night's work
            write_text(out / ERROR_NAME, traceback.format_exc())
            study.fail(number, f"{type(error).__name__}: {error} (see {out / ERROR_NAME})")


def _train(recipe: Recipe, out: Path, reporter: _StudyCallback, progress: Progress, device: Wanted) -> float:
    # all trials render the start date of the sweep: otherwise their losses would be on different prompts
    began = datetime.fromtimestamp(int((out.parents[1] / SWEEP_NAME).stat().st_mtime))
    if not is_finished(out):
        from finetune.run import run
        from finetune.train.session import CallOptions

        begun = bool(saved(out / CHECKPOINTS))
        options = CallOptions(resume=begun, callbacks=(reporter,), began=began, device=device)
        if run(recipe, out, progress, options).stopped:
            raise KeyboardInterrupt
    validation = read_manifest(out).facts["validation_loss"]
    if not validation:
        raise DataError(f"{out}: the run has no validation loss.")
    return float(min(loss for _, loss in validation))


def _keep_only_metrics(out: Path) -> None:
    """Keep the metrics of a pruned trial and delete its checkpoints."""
    metrics = out / CHECKPOINTS / run_folder.METRICS
    if metrics.is_file():
        metrics.replace(out / run_folder.METRICS)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
