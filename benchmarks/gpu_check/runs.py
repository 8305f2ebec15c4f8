"""Whole runs of our side: `finetune run` stopped and resumed, `gladstone export gguf` with its proof.

Names safetensors.
"""

import shutil
from typing import Any

from benchmarks.gpu_check.subject import Subject
from finetune.monitor.metrics_log import read_history
from finetune.run import run
from finetune.train.session import CallOptions
from finetune.train.stop_conditions import CallLimits
from gladstone import file_names, run_folder
from gladstone.artifacts import is_finished
from gladstone.commands.progress import Silent

STOPPED_AFTER = 5


class Runs:
    """The run folders of a subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._whole, self._stopped = subject.folder / "run", subject.folder / "resumed"

    def resume(self) -> dict[str, Any]:
        """The losses of a run, and of one that is stopped in the middle and resumed; how far their adapters differ."""
        self._run_whole()
        shutil.rmtree(self._stopped, ignore_errors=True)
        first = run(self._recipe(), self._stopped, Silent(), CallOptions(limits=CallLimits(max_steps=STOPPED_AFTER)))
        run(self._recipe(), self._stopped, Silent(), CallOptions(resume=True))
        losses = [
            [stats.loss_nats_per_token for stats in read_history(folder / run_folder.METRICS).steps]
            for folder in (self._whole, self._stopped)
        ]
        return {"stopped": first.stopped, "losses": losses, "adapters": self._apart()}

    def export(self) -> dict[str, Any]:
        """Export the run to Q8_0 and prove it: each check of the proof with its verdict."""
        from export.build import ExportOptions
        from export.original.model import SourceOptions
        from export.pipeline import export_gguf

        self._run_whole()
        shutil.rmtree(self._whole / "gguf", ignore_errors=True)
        made = export_gguf(self._whole, SourceOptions(), ExportOptions(("q8_0",), accepted=True), None, Silent())
        checks = [check for checks in made.proof.values() for check in checks]
        return {
            "checks": {check.name: check.passed for check in checks},
            "files": [path.name for path in made.files.values()],
        }

    def _recipe(self) -> Any:
        return self._subject.recipe(samples=1, sample_tokens=8)

    def _run_whole(self) -> None:
        if not is_finished(self._whole):
            shutil.rmtree(self._whole, ignore_errors=True)
            run(self._recipe(), self._whole, Silent())

    def _apart(self) -> float:
        from safetensors.torch import load_file

        one, other = (
            load_file(folder / run_folder.ADAPTER / file_names.ADAPTER_WEIGHTS)
            for folder in (self._whole, self._stopped)
        )
        apart = sum(float((one[name].float() - other[name].float()).square().sum()) for name in one)
        whole = sum(float(one[name].float().square().sum()) for name in one)
        return float((apart / whole) ** 0.5)
