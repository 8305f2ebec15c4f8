"""The training loop on its own, without a run folder around it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.trainable import Trainable
from finetune.monitor.callbacks import Watcher
from finetune.tokens.tokenize import Example
from finetune.train.evaluation import Judge
from finetune.train.loop import Ended, Job, Loop
from finetune.train.stop_conditions import Limits


def loop_over(
    trainable: Trainable,
    examples: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    limits: Limits | None = None,
    watchers: Sequence[Watcher] = (),
    held_out: Sequence[Example] | None = None,
    **found: Any,
) -> Loop:
    """A loop that trains on the rows, and validates on `held_out` or else on the same rows."""
    job = Job(
        trainable, examples, recipe, folder, {"recipe": {}}, lambda rows: [f"rows.jsonl:{row + 1}" for row in rows]
    )
    judge = Judge(trainable, examples if held_out is None else held_out, recipe.training)
    return Loop(job, judge, limits or Limits(), watchers, **found)


def train(trainable: Trainable, examples: Sequence[Example], recipe: Recipe, folder: Path, **options: Any) -> Ended:
    """Run the loop to its end."""
    loop = loop_over(trainable, examples, recipe, folder, **options)
    try:
        return loop.run()
    finally:
        loop.close()
