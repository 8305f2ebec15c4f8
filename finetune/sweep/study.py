"""The sweep's memory: an Optuna study in a journal file, which outlives a killed process. Names optuna.

A journal, not SQLite: it also works on the network folder that the machines of a Ray cluster share.
"""

import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.sweep.config import Range, combinations
from finetune.sweep.search_space import Plan, Settings, check_points

JOURNAL_NAME = "study.journal"
NAME = "sweep"
REASON, SAME_AS, JUDGED, PEAK = "reason", "same as", "judged steps", "peak memory bytes"
RANDOM_SHARE = 3  # of a TPE search's trials, one of three is drawn before any is proposed, at most Optuna's own 10


@dataclass(frozen=True)
class Claim:
    """A trial to be made: its number from 1, its settings, and whether an earlier process has begun it."""

    number: int
    settings: Settings
    begun: bool


class Study:
    """The trials of a sweep and their states; several processes may hold one at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        path = str(folder / JOURNAL_NAME)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 4 calls its journal experimental
            storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
            self._study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                load_if_exists=True,
                direction="minimize",
                sampler=optuna.samplers.RandomSampler(seed=plan.section.seed),
                pruner=_pruner(plan),
            )

    def enlist(self, points: Sequence[dict[str, Any]]) -> None:
        """Put what a grid or a random search will try into the study."""
        for point in points[len(self.trials()) :]:  # a killed process may have put in the first ones
            self._study.enqueue_trial(point)

    def trials(self) -> list[Any]:
        """Optuna's frozen trials, those that wait among them."""
        return list(self._study.get_trials(deepcopy=False))

    def claim(self, taken: Collection[int] = ()) -> Claim | None:
        """The next trial to make: one that was under way, else a new one; None if there is none left.

        `taken` are the numbers of trials that this process has claimed before and that still run.
        """
        while True:
            trials = self.trials()
            begun = [each.number for each in trials if each.state.name == "RUNNING" and each.number + 1 not in taken]
            waiting = any(each.state.name == "WAITING" for each in trials)
            if not begun and not waiting and (self._plan.section.search != "tpe" or len(trials) >= self._plan.total):
                return None
            self._study.sampler = _sampler(self._plan, begun[0] if begun else len(trials))
            trial = self._running(begun[0]) if begun else self._study.ask()
            settings = self._plan.settings(_suggest(trial, self._plan))
            if begun or not self._repeats(trial):
                return Claim(trial.number + 1, settings, bool(begun))

    def judge(self, number: int, step: int, loss: float) -> bool:
        """Note a running trial's validation loss after an optimizer step; True if it shall be given up."""
        trial = self._running(number - 1)
        steps: list[int] = trial.user_attrs.get(JUDGED, [])
        if step not in steps:
            steps = [*steps, step]
            trial.set_user_attr(JUDGED, steps)
        place = steps.index(step)  # trials of other batch sizes judge at other steps: the n-th validations compare
        if place not in self.trials()[number - 1].intermediate_values:
            trial.report(loss, place)
        return bool(trial.should_prune())

    def state(self, number: int) -> str:
        """Optuna's name of the state of a trial."""
        return str(self.trials()[number - 1].state.name)

    def finish(self, number: int, loss: float) -> None:
        """The trial is done."""
        self._study.tell(number - 1, loss)

    def prune(self, number: int, peak_bytes: int | None = None) -> None:
        """The trial is given up since others do better; it has no manifest to keep the peak of its memory."""
        from optuna.trial import TrialState

        self._running(number - 1).set_user_attr(PEAK, peak_bytes)
        self._study.tell(number - 1, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """The trial is given up since it cannot be made."""
        from optuna.trial import TrialState

        self._running(number - 1).set_user_attr(REASON, reason)
        self._study.tell(number - 1, state=TrialState.FAIL)

    def settings(self, number: int) -> Settings:
        """The settings of a trial that was claimed."""
        return self._plan.settings(self.trials()[number - 1].params)

    def _running(self, place: int) -> Any:
        import optuna

        return optuna.Trial(self._study, self.trials()[place]._trial_id)

    def _repeats(self, trial: Any) -> bool:
        """True if TPE proposed what is known already: the trial then takes the loss of the one before."""
        finished = (each for each in self.trials() if each.state.name == "COMPLETE")
        same = next((each for each in finished if each.params == trial.params), None)
        if same is None:
            return False
        trial.set_user_attr(SAME_AS, same.user_attrs.get(SAME_AS, same.number + 1))
        self.finish(trial.number + 1, same.value)
        return True


def mend_journal(folder: Path) -> None:
    """Cut off a line that a power cut left half-written, and the lock of a killed process: nobody else may be at it."""
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


def draw_points(plan: Plan) -> list[dict[str, Any]]:
    """All that a grid tries, or what a random search will: known from the start, so a killed sweep draws no other.

    Empty for TPE, which proposes one after the other. Raises ConfigError that lists what the recipe refuses.
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
    check_points(plan, points)
    return points


def _draw(plan: Plan) -> list[dict[str, Any]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.section.seed))
    return [_suggest(study.ask(), plan) for _ in range(plan.total)]


def _sampler(plan: Plan, place: int) -> Any:
    """A new one for each trial, seeded by its place: a sweep that goes on proposes what an unbroken one would."""
    import optuna

    seed = plan.section.seed + place
    if plan.section.search != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, -(-plan.total // RANDOM_SHARE)))


def _pruner(plan: Plan) -> Any:
    import optuna

    pruning = plan.section.pruning
    if pruning.kind == "median":
        return optuna.pruners.MedianPruner(pruning.after_trials, pruning.after_validations)
    if pruning.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(pruning.after_validations, pruning.reduction)
    return optuna.pruners.NopPruner()
