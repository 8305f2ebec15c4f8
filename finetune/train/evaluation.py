"""The loss of held-out rows, and the validations during training. Names torch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from finetune.config.schema import TrainingSection
from finetune.model.out_of_memory import out_of_memory
from finetune.model.trainable import Trainable, release_memory
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, MetricsLog
from finetune.tokens.examples import Example, token_count
from finetune.tokens.step_schedule import evaluation_batches
from finetune.train.sample_answers import Prompt, answer, prompts_of, scores
from finetune.train.stop_conditions import Interrupted
from gladstone.errors import DataError, UnsupportedError


def measure_loss(
    trainable: Trainable,
    examples: Sequence[Example],
    on_part: Callable[[float], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    name_rows: Callable[[Sequence[int]], str] = lambda rows: f"{len(rows)} rows",
) -> float:
    """Return the mean cross-entropy over all scored tokens in nats; leaves the model in training mode.

    If memory does not suffice, evaluation batches get smaller, those of the training do not. Raises Interrupted when
    `interrupted` returns True, UnsupportedError if a single row takes too much memory, and DataError with the names of
    the rows if the loss is not finite.
    """
    import torch

    lengths = [token_count(example) for example in examples]
    forward = trainable.forward
    context = trainable.context
    whole = evaluation_batches(lengths, padded=forward.padded)
    waiting = context.own_part(whole)
    idle = -(-len(whole) // context.world_size) - len(
        waiting
    )  # sharded weights are gathered together: all processes compute equally often
    nats, targets, seen = 0.0, 0, 0
    wrong: list[int] = []
    trainable.model.eval()
    try:
        with torch.no_grad(), trainable.uncompiled():
            while waiting:
                if interrupted():
                    raise Interrupted
                rows = waiting.pop(0)
                batch = forward.batch([examples[row] for row in rows])
                try:
                    with trainable.autocast():
                        loss = float(forward.loss(batch, 1))
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    if len(rows) == 1:
                        raise UnsupportedError(
                            f"out of memory while measuring the loss of a single row of {lengths[rows[0]]:,} tokens. "
                            "Set base.load_in_4bit=true or lower base.max_tokens."
                        ) from error
                    half = len(rows) // 2
                    waiting[:0] = [rows[:half], rows[half:]]
                    release_memory()
                    continue
                nats += loss
                wrong += [] if math.isfinite(loss) else rows
                targets += batch.target_tokens
                seen += len(rows)
                if on_part:
                    on_part(seen / len(examples))
            if idle and context.sharded:
                forward.loss(forward.batch([examples[row] for row in whole[0]]), 1)
    finally:
        trainable.train()
    nats, scored = context.all_reduce_sum(nats, targets)
    if not math.isfinite(nats):
        named = name_rows(sorted(row for rows in context.gather(wrong) for row in rows))
        raise _not_finite(nats / scored, named, trainable.dtype)
    return nats / scored


def _not_finite(loss: float, named: str, dtype: str) -> DataError:
    why = "Numbers in float16 end at 65,504: leave these rows out, or train on a GPU that computes in bfloat16."
    return DataError(
        f"the held-out loss is {loss}: the model does not compute probabilities for {named}. "
        + (why if dtype == "float16" else "Are its weights damaged?")
    )


@dataclass
class Validator:
    """Measures the validation loss, and answers fixed prompts if the recipe has samples.

    `seconds` is the duration of the last validation; `decode` maps token ids to text.
    """

    trainable: Trainable
    held_out: Sequence[Example]
    training: TrainingSection
    decode: Callable[[list[int]], str] = str
    seconds: float = 0.0
    interrupted: Callable[[], bool] = field(default=lambda: False)
    name_rows: Callable[[Sequence[int]], str] = lambda rows: f"{len(rows)} rows"

    def evaluate(self, step: int, metrics_log: MetricsLog) -> Callable[[Callback], None]:
        """Write loss, answers and scores to the metrics, all or none, and return a function that reports to a callback.

        Raises Interrupted if the run must stop, and what `measure_loss` raises.
        """
        begin_s = time.monotonic()
        loss = measure_loss(self.trainable, self.held_out, interrupted=self.interrupted, name_rows=self.name_rows)
        answers = self._answers()
        self.seconds = time.monotonic() - begin_s
        metrics_log.append("validation", step, loss_nats_per_token=loss)
        for prompt, text in answers:
            metrics_log.append("sample", step, prompt=prompt.text, text=text, reference=prompt.reference)
        answer_scores = (
            scores([text for _, text in answers], [prompt.reference for prompt, _ in answers]) if answers else {}
        )
        if answer_scores:
            metrics_log.append("scores", step, **answer_scores)

        def report(callback: Callback) -> None:
            for prompt, text in answers:
                callback.on_sample(step, prompt.text, text)
            if answer_scores:
                callback.on_scores(step, answer_scores)
            callback.on_validation_end(step, loss)

        return report

    def _answers(self) -> list[tuple[Prompt, str]]:
        answers: list[tuple[Prompt, str]] = []
        context = self.trainable.context
        if not (context.is_main or context.sharded):  # the weights of a layer that is sharded are gathered together
            return answers
        for prompt in prompts_of(self.held_out, self.training.samples, self.decode):
            if self.interrupted():
                raise Interrupted
            try:
                text = answer(self.trainable, prompt, self.training.sample_tokens, self.decode)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise UnsupportedError(
                    f"out of memory while generating {self.training.sample_tokens:,} tokens for a prompt of "
                    f"{len(prompt.ids):,} tokens. Lower training.sample_tokens, or set training.samples=0."
                ) from error
            answers.append((prompt, text))
        return answers

    def without_progress(self, history: History) -> int:
        """Return the number of validations since the best one."""
        best = history.best
        return 0 if best is None else sum(step > best[0] for step, _ in history.validation)
