"""The remaining time of a run, measured on the first steps of a call and reported once."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.estimate.estimate import Estimate
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, StepStats
from finetune.tokens.examples import token_count
from finetune.train.inputs import Inputs
from gladstone.report.durations import rough_duration

if TYPE_CHECKING:
    from finetune.train.loop import Loop

FIRST_STEPS = 6  # of a call; the first is not counted, because it loads kernels and may compile layers


class TimeLeft(Callback):
    """Reports the measured time after the first steps of a call, unless earlier calls of the run made as many."""

    def __init__(self, inputs: Inputs, computed: Estimate | None, show: Callable[[str], None]) -> None:
        lengths = {name: [token_count(example) for example in rows.examples] for name, rows in inputs.sets.items()}
        self._tokens = {name: sum(counts) for name, counts in lengths.items()}
        self._rows = len(lengths["train"])
        self._computed, self._show = computed, show
        self._loop: Loop | None = None
        self._seen: list[StepStats] = []
        self._due = False

    def follow(self, loop: "Loop") -> None:
        """Set the loop, which knows the steps of the run and the time of the evaluation before training."""
        self._loop = loop

    def on_train_begin(self, history: History, total: int) -> None:
        """Report nothing if the opening block was already based on measured steps."""
        self._due = len(history.steps) < FIRST_STEPS

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """Count a step; report the time after enough of them, if some are left."""
        if not self._due or self._loop is None:
            return
        self._seen.append(stats)
        if len(self._seen) == FIRST_STEPS:
            self._due = False
            if stats.step < total:
                self._show(self.line(self._loop, total))

    def line(self, loop: "Loop", total: int) -> str:
        """Render the line, aligned with the opening block."""
        counted = self._seen[1:]
        token_s = sum(stats.step_s for stats in counted) / sum(stats.tokens for stats in counted)
        step_s = token_s * self._tokens["train"] / self._rows * loop.schedule.rows_trained / total
        left = total - counted[-1].step
        left_s = left * step_s + self._evaluations_s(loop, counted[-1].step)
        computed = self._computed.times if self._computed else None
        before = f"; the estimate was {computed.step_s:.1f} s" if computed else ""
        return (
            f"time      about {rough_duration(left_s)} for the remaining {left:,} steps and their evaluations, "
            f"measured: {step_s:.1f} s per step over steps {counted[0].step} to {counted[-1].step}{before}"
        )

    def _evaluations_s(self, loop: "Loop", step: int) -> float:
        """Estimate the remaining validations and the test from the time per token of the one before training."""
        measured = self._tokens.get("test") or self._tokens.get("validation")
        if not measured:
            return 0.0
        left = loop.schedule.validations - loop.schedule.validations_until(step)
        tokens = left * self._tokens.get("validation", 0) + self._tokens.get("test", 0)
        return float(loop.notes.get("measuring_s", 0.0)) * tokens / measured
