"""The state of a sweep: an Optuna study in a journal file, which survives a killed process. Names optuna.

A journal file, unlike SQLite, also works on the network folder that the machines of a Ray cluster share.
"""

import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.sweep.config import Range, combinations
from finetune.sweep.search_space import Plan, Settings, check_settings

JOURNAL_NAME = "study.journal"
NAME = "sweep"
REASON, SAME_AS, REPORTED_STEPS, PEAK_MEMORY = "reason", "same as", "judged steps", "peak memory bytes"
RANDOM_FRACTION = (
    3  # one third of a TPE search's trials are random before it proposes any, at most Optuna's default of 10
)


@dataclass(frozen=True)
class Claim:
    """A trial to run: its number from 1, its settings, and whether an earlier process started it."""

    number: int
    settings: Settings
    resumed: bool


class Study:
    """The trials of a sweep and their states; several processes may open it at once."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        path = str(folder / JOURNAL_NAME)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 4 marks its journal as experimental
            storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
            self._study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                load_if_exists=True,
                direction="minimize",
                sampler=optuna.samplers.RandomSampler(seed=plan.section.seed),
                pruner=_pruner(plan),
            )

    def enqueue(self, points: Sequence[dict[str, Any]]) -> None:
        """Enqueue the trials of a grid or a random search."""
        for point in points[len(self.trials()) :]:  # a killed process may have enqueued the first ones
            self._study.enqueue_trial(point)

    def trials(self) -> list[Any]:
        """Optuna's frozen trials, including waiting ones."""
        return list(self._study.get_trials(deepcopy=False))

    def claim(self, taken: Collection[int] = ()) -> Claim | None:
        """The next trial to run: an interrupted one, else a new one; None if none is left.

        `taken` holds the numbers of trials that this process has claimed and that still run.
        """
        while True:
            trials = self.trials()
            begun = [one.number for one in trials if one.state.name == "RUNNING" and one.number + 1 not in taken]
            waiting = any(other.state.name == "WAITING" for other in trials)
            if not begun and not waiting and (self._plan.section.search != "tpe" or len(trials) >= self._plan.total):
                return None
            self._study.sampler = _sampler(self._plan, begun[0] if begun else len(trials))
            trial = self._running(begun[0]) if begun else self._study.ask()
            settings = self._plan.settings(_suggest(trial, self._plan))
            if begun or not self._repeats(trial):
                return Claim(trial.number + 1, settings, bool(begun))

    def report(self, number: int, step: int, loss: float) -> bool:
        """Record the validation loss of a running trial at an optimizer step; True if the trial should be pruned."""
        trial = self._running(number - 1)
        steps: list[int] = trial.user_attrs.get(REPORTED_STEPS, [])
        if step not in steps:
            steps = [*steps, step]
            trial.set_user_attr(REPORTED_STEPS, steps)
        place = steps.index(step)  # trials with other batch sizes validate at other steps: compare the n-th validations
        if place not in self.trials()[number - 1].intermediate_values:
            trial.report(loss, place)
        return bool(trial.should_prune())

    def state(self, number: int) -> str:
        """Optuna's name for the state of a trial."""
        return str(self.trials()[number - 1].state.name)

    def finish(self, number: int, loss: float) -> None:
        """Mark a trial as finished."""
        self._study.tell(number - 1, loss)

    def prune(self, number: int, peak_bytes: int | None = None) -> None:
        """Mark a trial as pruned and record its peak memory, since it has no manifest."""
        from optuna.trial import TrialState

        self._running(number - 1).set_user_attr(PEAK_MEMORY, peak_bytes)
        self._study.tell(number - 1, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed."""
        from optuna.trial import TrialState

        self._running(number - 1).set_user_attr(REASON, reason)
        self._study.tell(number - 1, state=TrialState.FAIL)

    def settings(self, number: int) -> Settings:
        """The settings of a claimed trial."""
        return self._plan.settings(self.trials()[number - 1].params)

    def _running(self, place: int) -> Any:
        import optuna

        return optuna.Trial(self._study, self.trials()[place]._trial_id)

    def _repeats(self, trial: Any) -> bool:
        """True if TPE proposed settings of a finished trial: the new trial then gets its loss without a run."""
        finished = (other for other in self.trials() if other.state.name == "COMPLETE")
        same = next((other for other in finished if other.params == trial.params), None)
        if same is None:
            return False
        trial.set_user_attr(SAME_AS, same.user_attrs.get(SAME_AS, same.number + 1))
        self.finish(trial.number + 1, same.value)
        return True


def repair_journal(folder: Path) -> None:
    """Remove an incomplete last line and a stale lock; the caller must be the only process that uses the study."""
    path = folder / JOURNAL_NAME
    path.with_name(f"{JOURNAL_NAME}.lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole != path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(whole)


def _suggest(trial: Any, plan: Plan) -> dict[str, Any]:
    for name, values in plan.space.items():
        if not isinstance(values, Range):
            trial.suggest_categorical(name, values)
        elif values.whole:
            trial.suggest_int(name, values.low, values.high, log=values.log, step=values.step or 1)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
    return dict(trial.params)


def sample_points(plan: Plan) -> list[dict[str, Any]]:
    """The trials of a grid or random search, fixed from the start, so that a continued sweep gets the same ones.

    Empty for TPE, which proposes trials one by one. Raises ConfigError that lists every invalid combination.
    """
    section = plan.section
    if section.search == "tpe":
        return []
    if section.search == "grid":
        points = list(plan.grid())
    elif combinations(plan.space) is not None:
        draw = random.Random(section.seed)  # noqa: S311 - a draw, not a secret
        points = draw.sample(list(plan.grid()), plan.total)
    else:
        points = _draw(plan)
    check_settings(plan, points)
    return points


def _draw(plan: Plan) -> list[dict[str, Any]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.section.seed))
    return [_suggest(study.ask(), plan) for _ in range(plan.total)]


def _sampler(plan: Plan, place: int) -> Any:
    """A new sampler per trial, seeded by its index: a continued sweep proposes what an uninterrupted one would."""
    import optuna

    seed = plan.section.seed + place
    if plan.section.search != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, -(-plan.total // RANDOM_FRACTION)))


def _pruner(plan: Plan) -> Any:
    import optuna

    pruning = plan.section.pruning
    if pruning.kind == "median":
        return optuna.pruners.MedianPruner(pruning.after_trials, pruning.after_validations)
    if pruning.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(pruning.after_validations, pruning.reduction)
    return optuna.pruners.NopPruner()
