"""What a training loop is given, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import Trainable
from finetune.monitor.metrics_log import History
from finetune.tokens.examples import Example

OUT_OF_MEMORY, SKIPPED = "out of memory", "step skipped"  # kinds of events in the metrics


@dataclass(frozen=True)
class Job:
    """What is trained on which rows, and the folder of its checkpoints.

    `identity` is what the calls of one run must share; `sources` names the files and lines of rows.
    """

    trainable: Trainable
    examples: Sequence[Example]
    recipe: Recipe
    folder: Path
    identity: dict[str, Any]
    sources: Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True)
class LoopResult:
    """Why the loop stopped early ('' if it did not), and what it recorded."""

    reason: str
    history: History
    seconds: dict[str, float]
    notes: dict[str, Any]
