"""When a training saves a checkpoint, and how long that takes."""

import time
from pathlib import Path
from typing import Any

from finetune.config.schema import TrainingSection
from finetune.monitor.metrics_log import History
from finetune.train import checkpoint as checkpoints
from finetune.train.checkpoint import Checkpoint


class Saver:
    """Writes the checkpoints of one run into a folder, and removes those that are no longer needed.

    `step` is that of the newest checkpoint, -1 without one; `slowest_s` the longest time that one of this call took.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], training: TrainingSection, step: int = -1) -> None:
        self._folder, self._identity, self._training = folder, identity, training
        self.step, self.slowest_s = step, 0.0
        self._saved_s = time.monotonic()

    def is_due(self, step: int, history: History) -> bool:
        """True if a checkpoint should be saved after this step."""
        every = self._training.checkpoint_steps
        if step == 0 or history.skipped_in_a_row:  # the adapter has not changed
            return False
        if every is not None:
            return step % every == 0
        if self.step < 1:  # measures the time of saving, and fails early if the disk is too small
            return True
        return time.monotonic() - self._saved_s >= self._training.checkpoint_minutes * 60

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps. Raises ArtifactError if one stays."""
        kept = checkpoints.remove_after(self._folder, step)
        self.step = checkpoints.step_of(kept[-1]) if kept else -1

    def save(self, checkpoint: Checkpoint, history: History) -> None:
        """Write a checkpoint and remove old ones. Raises ArtifactError if it cannot be written."""
        begin_s = time.monotonic()
        checkpoints.save(self._folder, checkpoint, self._identity)
        best = history.best
        checkpoints.prune(self._folder, self._training.keep_checkpoints, best[0] if best else None)
        self.step, self._saved_s = checkpoint.step, time.monotonic()
        self.slowest_s = max(self.slowest_s, self._saved_s - begin_s)
