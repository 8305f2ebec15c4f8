"""Reads the run folders of the trials into a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.monitor.metrics_log import History, StepStats, read_history
from finetune.sweep.search_space import Plan, Settings
from finetune.sweep.storage import trial_folder
from finetune.sweep.study import PEAK_MEMORY, REASON, SAME_AS, Study
from finetune.train.checkpoint import FOLDER as CHECKPOINTS
from finetune.train.verdict import serious
from gladstone import run_folder
from gladstone.artifacts import is_finished, read_manifest

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "under way"}
FINAL_FRACTION = (
    10  # the final training loss is the mean over the last tenth of the steps, since that of one step is noisy
)

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrialMetrics:
    """The metrics of a trial; None if not measured. Losses are in nats per target token."""

    training_loss: float | None = None
    validation: Curve = ()
    held_out_loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    train_s: float | None = None
    peak_memory_bytes: int | None = None
    tokens_per_s: float | None = None
    steps: int = 0
    warnings: tuple[str, ...] = ()  # serious warnings of a finished run
    peak_gpu_bytes: int | None = None  # in tensors

    @property
    def validation_loss(self) -> float | None:
        """The lowest validation loss."""
        return min((loss for _, loss in self.validation), default=None)


@dataclass(frozen=True)
class Row:
    """A trial: its number from 1, its settings, its state and the reason for it, its run folder in the sweep folder."""

    number: int
    settings: Settings
    state: str
    reason: str
    folder: Path
    metrics: TrialMetrics


@dataclass(frozen=True)
class Table:
    """The trials started so far, out of `total`; `best` is the finished one with the lowest validation loss."""

    name: str
    fields: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int
    notes: tuple[str, ...]

    @property
    def best(self) -> Row | None:
        """The best trial, the first of equals; None if none is finished."""
        finished = [row for row in self.rows if row.state == "finished" and row.metrics.validation_loss is not None]
        return min(finished, key=lambda row: row.metrics.validation_loss or 0.0, default=None)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of all scores of sampled answers."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.metrics.scores))


def read_table(folder: Path, plan: Plan, study: Study) -> Table:
    """The current table."""
    rows = []
    for trial in study.trials():
        if trial.state.name == "WAITING" or len(trial.params) < len(plan.space):
            continue
        number = trial.number + 1
        same = trial.user_attrs.get(SAME_AS)
        out = trial_folder(folder, same or number)
        reason = trial.user_attrs.get(REASON, "")
        if same:
            reason = f"same settings as trial {same}, which was not run again"
        state = f"same as {same}" if same else STATES[trial.state.name]
        within = out.relative_to(folder)
        metrics = read_trial_metrics(out)
        if metrics.peak_memory_bytes is None:
            metrics = replace(metrics, peak_memory_bytes=trial.user_attrs.get(PEAK_MEMORY))
        rows.append(Row(number, plan.settings(trial.params), state, reason, within, metrics))
    return Table(plan.recipe["name"], tuple(plan.space), tuple(rows), plan.total, tuple(plan.notes))


def read_trial_metrics(out: Path) -> TrialMetrics:
    """The metrics in a run folder, finished or not. Raises ArtifactError if its manifest or metrics are damaged."""
    paths = (out / run_folder.METRICS, out / CHECKPOINTS / run_folder.METRICS)
    history = next((read_history(path) for path in paths if path.is_file()), History())
    steps = history.steps
    facts = read_manifest(out).facts if is_finished(out) else {}
    spent_s = sum(stats.step_s for stats in steps)
    return TrialMetrics(
        training_loss=_final_loss(history.applied),
        validation=tuple(history.validation),
        held_out_loss=facts.get("held_out_loss_after"),
        scores=_numbers(history.scores[-1][1]) if history.scores else {},
        train_s=facts.get("train_s", spent_s or None),
        peak_memory_bytes=facts.get("peak_memory_bytes"),
        peak_gpu_bytes=(facts.get("gpu_memory") or {}).get("peak_allocated_bytes"),
        tokens_per_s=facts.get("tokens_per_s", history.tokens / spent_s if spent_s else None),
        steps=len(steps),
        warnings=tuple(str(each["text"]) for each in serious(facts)),
    )


def _numbers(scores: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in scores.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _final_loss(steps: Sequence[StepStats]) -> float | None:
    last = steps[-max(1, len(steps) // FINAL_FRACTION) :]
    targets = sum(stats.target_tokens for stats in last)
    return sum(stats.loss_nats_per_token * stats.target_tokens for stats in last) / targets if targets else None
