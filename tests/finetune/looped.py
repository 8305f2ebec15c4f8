"""The training loop on its own, without a run folder around it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import Trainable
from finetune.monitor.callbacks import Callback
from finetune.tokens.examples import Example
from finetune.train.checkpoint import Checkpoint
from finetune.train.evaluation import Validator
from finetune.train.job import Job, LoopResult
from finetune.train.loop import Loop
from finetune.train.stop_conditions import CallLimits


def loop_over(
    trainable: Trainable,
    examples: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    limits: CallLimits | None = None,
    callbacks: Sequence[Callback] = (),
    held_out: Sequence[Example] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Loop:
    """A loop that trains on the rows, and validates on `held_out` or else on the same rows."""
    job = Job(
        trainable, examples, recipe, folder, {"recipe": {}}, lambda rows: [f"rows.jsonl:{row + 1}" for row in rows]
    )
    validator = Validator(trainable, examples if held_out is None else held_out, recipe.training)
    return Loop(job, validator, limits or CallLimits(), callbacks, checkpoint)


def train(
    trainable: Trainable, examples: Sequence[Example], recipe: Recipe, folder: Path, **options: Any
) -> LoopResult:
    """Run the loop to its end."""
    loop = loop_over(trainable, examples, recipe, folder, **options)
    try:
        return loop.run()
    finally:
        loop.close()
