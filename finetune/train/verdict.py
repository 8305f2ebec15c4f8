"""Warnings about a finished training, found in its losses and gradients and stored in its manifest."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

from finetune.monitor.metrics_log import History, StepStats
from finetune.train.job import OUT_OF_MEMORY

TOLERANCE_NATS, TOLERANCE_SHARE = (
    0.005,
    0.01,
)  # a smaller change of a held-out loss is no change; the lower limit counts
GUESSING_SHARE = 0.98  # a loss above this share of the loss of guessing is no better than guessing
SILENT_STEPS, SILENT_SHARE = 3, 0.1  # steps without gradient: consecutive ones, and their share of all
STILL_STEPS, STILL_NATS = 5, 1e-3  # last steps, and the range of losses that counts as no change
FIRST_SKIPS, SKIPPED_SHARE = 4, 0.1  # a gradient scaler skips the first steps while it finds its scale
FEW_ROWS = 30
PART, RISEN_NATS = 5, 0.05  # first and last steps whose mean losses are compared without held-out rows
SLOWER = "a lower training.learning_rate or fewer epochs; metrics.jsonl has the loss and the gradient of every step"
FASTER = "a higher training.learning_rate or more epochs; `finetune data preview` shows what is scored"
ADVICE = {"nothing learnt": FASTER, "memory": ""}  # SLOWER for all other kinds


@dataclass(frozen=True)
class RunWarning:
    """A warning about a run; a `serious` one says that the adapter should not be used."""

    kind: str
    text: str  # a sentence without its full stop
    serious: bool = True
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What to try, '' if there is nothing to do."""
        return ADVICE.get(self.kind, SLOWER)

    def as_json(self) -> dict[str, Any]:
        """The warning as the manifest stores it."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """Losses before and after training in nats per scored token (None: not measured), on `rows` rows."""

    before: float | None
    after: float | None
    rows: int
    vocabulary: int
    name: str = "held-out loss"

    @property
    def guessing(self) -> float:
        """The loss of a model that gives every token the same probability."""
        return math.log(self.vocabulary)


def serious(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The serious warnings of a manifest's facts."""
    return [warning for warning in facts.get("warnings") or [] if isinstance(warning, dict) and warning.get("serious")]


def find_warnings(history: History, measured: Measured) -> tuple[RunWarning, ...]:
    """Return the warnings about a run, the serious ones first."""
    applied = history.applied
    warnings = [*_held_out(measured), *_gradients(history.steps), *_skipped(history.steps), *_still(applied)]
    warnings += _memory(history)
    if measured.before is None and measured.after is None:
        warnings += _risen(applied)
    return tuple(sorted(warnings, key=lambda warning: not warning.serious))


def _held_out(measured: Measured) -> Iterator[RunWarning]:
    before, after = measured.before, measured.after
    if before is None or after is None:
        return
    few = f", on {measured.rows} rows only" if measured.rows < FEW_ROWS else ""
    losses = f"{measured.name} {before:.3f} → {after:.3f} nats per answer token{few}"
    figures = {"before": before, "after": after, "rows": measured.rows, "guessing": measured.guessing}
    within = min(TOLERANCE_NATS, TOLERANCE_SHARE * before)
    if after > before + within:
        guesses = after > GUESSING_SHARE * measured.guessing > before
        than = f" and no better than guessing among {measured.vocabulary:,} tokens ({measured.guessing:.2f})" * guesses
        yield RunWarning(
            "worse than before", f"the model is worse than before training{than}: {losses}", figures=figures
        )
    elif after >= before - within:
        yield RunWarning("nothing learnt", f"the model is what it was before training: {losses}", figures=figures)


def _gradients(steps: Sequence[StepStats]) -> Iterator[RunWarning]:
    silent = [stats.step for stats in steps if stats.grad_norm == 0]
    if _longest(silent) >= SILENT_STEPS or len(silent) > SILENT_SHARE * len(steps):
        which = f"{len(silent)} of {len(steps)} steps (the first: step {silent[0]})"
        yield RunWarning(
            "no gradient", f"the gradient was 0 in {which}: nothing is learnt there", figures={"steps": silent[:100]}
        )


def _skipped(steps: Sequence[StepStats]) -> Iterator[RunWarning]:
    skipped = [stats.step for stats in steps if stats.skipped]
    if not skipped:
        return
    first = min(sum(1 for _ in takewhile(lambda stats: stats.skipped, steps)), FIRST_SKIPS)
    while_found = f", {first} of them at the start, while the scale of the loss was found" if first else ""
    yield RunWarning(
        "steps skipped",
        f"{len(skipped)} of {len(steps)} steps were skipped, their gradient was not finite{while_found}",
        serious=len(skipped) - first > max(2, SKIPPED_SHARE * len(steps)),
        figures={"steps": skipped[:100]},
    )


def _longest(numbers: Sequence[int]) -> int:
    """Return the length of the longest run of consecutive numbers among ascending ones."""
    longest = run = 0
    for index, number in enumerate(numbers):
        run = run + 1 if index and number == numbers[index - 1] + 1 else 1
        longest = max(longest, run)
    return longest


def _still(steps: Sequence[StepStats]) -> Iterator[RunWarning]:
    """The loss of the last steps does not change and is not below that of step 1: nothing was learnt."""
    last = [stats.loss_nats_per_token for stats in steps[-STILL_STEPS:]]
    if len(steps) <= STILL_STEPS or max(last) - min(last) > STILL_NATS or last[-1] < steps[0].loss_nats_per_token:
        return
    yield RunWarning(
        "loss stands still",
        f"the training loss stands still at {last[-1]:.3f}, where it was {steps[0].loss_nats_per_token:.3f} in step 1",
        figures={"first": steps[0].loss_nats_per_token, "last": last},
    )


def _risen(steps: Sequence[StepStats]) -> Iterator[RunWarning]:
    losses = [stats.loss_nats_per_token for stats in steps]
    if len(losses) < 2 * PART:
        return
    early, late = losses[:PART], losses[-PART:]
    noise = math.sqrt((statistics.variance(early) + statistics.variance(late)) / PART)
    first, last = statistics.mean(early), statistics.mean(late)
    if last - first > max(RISEN_NATS, 2 * noise):
        yield RunWarning(
            "training loss rose",
            f"the training loss rose from {first:.3f} in the first {PART} steps to {last:.3f} in the last",
            figures={"first": first, "last": last, "noise": noise},
        )


def _memory(history: History) -> Iterator[RunWarning]:
    for event in history.events:
        if event["kind"] == OUT_OF_MEMORY:
            yield RunWarning(
                "memory",
                f"memory did not suffice in step {event['step']}: from there on a micro-batch has at most "
                f"{event['batch_tokens']:,} tokens",
                serious=False,
                figures={"step": event["step"], "batch_tokens": event["batch_tokens"]},
            )
