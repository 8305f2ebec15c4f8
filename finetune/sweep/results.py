"""What the trials' run folders say, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.monitor.metrics_log import History, StepStats, read_history
from finetune.sweep.search_space import Plan, Settings
from finetune.sweep.storage import trial_folder
from finetune.sweep.study import PEAK, REASON, SAME_AS, Study
from finetune.train.checkpoint import FOLDER as CHECKPOINTS
from finetune.train.verdict import serious
from gladstone import run_folder
from gladstone.artifacts import is_finished, read_manifest

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "under way"}
LAST_SHARE = 10  # the final training loss is over the last tenth of the steps: that of a single step is noise

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Figures:
    """What was measured of a trial; None where it was not. Losses in nats per target token."""

    training_loss: float | None = None
    validation: Curve = ()
    held_out_loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    train_s: float | None = None
    peak_memory_bytes: int | None = None
    tokens_per_s: float | None = None
    steps: int = 0
    warnings: tuple[str, ...] = ()  # what went wrong in a run that is finished

    @property
    def validation_loss(self) -> float | None:
        """The lowest one."""
        return min((loss for _, loss in self.validation), default=None)


@dataclass(frozen=True)
class Row:
    """A trial: its number from 1, its settings, what became of it and why, its run folder within the sweep's."""

    number: int
    settings: Settings
    state: str
    reason: str
    folder: Path
    figures: Figures


@dataclass(frozen=True)
class Table:
    """All trials that were begun, of how many; `best` is the finished one with the lowest validation loss."""

    name: str
    fields: tuple[str, ...]
    rows: tuple[Row, ...]
    total: int
    notes: tuple[str, ...]

    @property
    def best(self) -> Row | None:
        """The earliest of equals; None while none is finished."""
        finished = [row for row in self.rows if row.state == "finished" and row.figures.validation_loss is not None]
        return min(finished, key=lambda row: row.figures.validation_loss or 0.0, default=None)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Metrics of sampled answers that any trial has."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.figures.scores))


def read_table(folder: Path, plan: Plan, study: Study) -> Table:
    """The table as it stands."""
    rows = []
    for trial in study.trials():
        if trial.state.name == "WAITING" or len(trial.params) < len(plan.space):
            continue
        number = trial.number + 1
        same = trial.user_attrs.get(SAME_AS)
        out = trial_folder(folder, same or number)
        reason = trial.user_attrs.get(REASON, "")
        if same:
            reason = f"the settings of trial {same}, which was not made again"
        state = f"same as {same}" if same else STATES[trial.state.name]
        within = out.relative_to(folder)
        figures = read_figures(out)
        if figures.peak_memory_bytes is None:
            figures = replace(figures, peak_memory_bytes=trial.user_attrs.get(PEAK))
        rows.append(Row(number, plan.settings(trial.params), state, reason, within, figures))
    return Table(plan.recipe["name"], tuple(plan.space), tuple(rows), plan.total, tuple(plan.notes))


def read_figures(out: Path) -> Figures:
    """The figures of a run folder, finished or not. Raises ArtifactError if its manifest or a metric is damaged."""
    paths = (out / run_folder.METRICS, out / CHECKPOINTS / run_folder.METRICS)
    history = next((read_history(path) for path in paths if path.is_file()), History())
    steps = history.steps
    facts = read_manifest(out).facts if is_finished(out) else {}
    spent_s = sum(stats.step_s for stats in steps)
    return Figures(
        training_loss=_final_loss(steps),
        validation=tuple(history.validation),
        held_out_loss=facts.get("held_out_loss_after"),
        scores=_numbers(history.scores[-1][1]) if history.scores else {},
        train_s=facts.get("train_s", spent_s or None),
        peak_memory_bytes=facts.get("peak_memory_bytes"),
        tokens_per_s=facts.get("tokens_per_s", history.tokens / spent_s if spent_s else None),
        steps=len(steps),
        warnings=tuple(str(each["text"]) for each in serious(facts)),
    )


def _numbers(scores: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in scores.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _final_loss(steps: Sequence[StepStats]) -> float | None:
    last = steps[-max(1, len(steps) // LAST_SHARE) :]
    targets = sum(stats.target_tokens for stats in last)
    return sum(stats.loss_nats_per_token * stats.target_tokens for stats in last) / targets if targets else None
