"""How good the model is while it is trained: validation loss at intervals, and what becomes of it. Names torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from finetune.batches import micro_batches
from finetune.journal import History, Journal
from finetune.labels import Example, token_count
from finetune.recipe import TrainingSection
from finetune.trainable import Trainable, out_of_memory, release_memory

TOKENS_AT_ONCE = 4096  # of an evaluation's batches on the CPU, where larger ones gain nothing


def measure_loss(
    trainable: Trainable,
    examples: Sequence[Example],
    on_part: Callable[[float], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> float:
    """Mean nats per target token over all examples, batched by length. Leaves the model in training mode.

    Memory that does not suffice makes its own batches smaller, never those of the training. Raises KeyboardInterrupt
    if `interrupted` becomes true.
    """
    import torch

    lengths = [token_count(example) for example in examples]
    forward = trainable.forward
    waiting = micro_batches(range(len(examples)), lengths, TOKENS_AT_ONCE, padded=forward.padded)
    nats, targets, seen = 0.0, 0, 0
    trainable.model.eval()
    try:
        with torch.no_grad():
            while waiting:
                if interrupted():
                    raise KeyboardInterrupt
                rows = waiting.pop(0)
                batch = forward.batch([examples[row] for row in rows])
                try:
                    with trainable.autocast():
                        nats += float(forward.loss(batch, 1))
                except (RuntimeError, MemoryError) as error:
                    if len(rows) == 1 or not out_of_memory(error):
                        raise
                    half = len(rows) // 2
                    waiting[:0] = [rows[:half], rows[half:]]
                    release_memory()
                    continue
                targets += batch.target_tokens
                seen += len(rows)
                if on_part:
                    on_part(seen / len(examples))
    finally:
        trainable.model.train()
    return nats / targets


@dataclass
class Judge:
    """Measures the validation loss when it is due; `seconds` is what the last time took."""

    trainable: Trainable
    held_out: Sequence[Example]
    training: TrainingSection
    seconds: float = 0.0
    interrupted: Callable[[], bool] = field(default=lambda: False)

    def due(self, step: int, total: int) -> bool:
        """True at `evaluations` steps spread evenly, the last step among them."""
        times = self.training.evaluations
        return step * times // total > (step - 1) * times // total

    def judge(self, step: int, journal: Journal) -> float:
        """The validation loss, noted in the journal. Raises KeyboardInterrupt if the user stops the run meanwhile."""
        begin_s = time.monotonic()
        loss = measure_loss(self.trainable, self.held_out, interrupted=self.interrupted)
        self.seconds = time.monotonic() - begin_s
        journal.note("validation", step, loss_nats_per_token=loss)
        return loss

    def without_progress(self, history: History) -> int:
        """How many validations came since the best one."""
        best = history.best
        return 0 if best is None else sum(step > best[0] for step, _ in history.validation)
