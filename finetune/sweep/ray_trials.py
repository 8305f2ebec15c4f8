"""Trials on the machines of a Ray cluster, which share the sweep's folder. Names ray.

The study stays the sweep's memory: Ray Tune places trials, sees workers die, and makes their trials again elsewhere,
where they go on from the checkpoint in their run folder.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.sweep.study import Study
from gladstone.errors import ConfigError, ToolError

LOCAL = "local"
SCRATCH = ".ray"  # Ray Tune's own notes; the study is what is kept
RETRIES = 3
# read by Ray when it is imported: nothing leaves the machine, and Ctrl-C is ours
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
Begun = Callable[[int, bool], None]
Ended = Callable[[int], None]


@dataclass(frozen=True)
class Cluster:
    """A cluster by its address ('local': one on this machine), and what of a machine each trial takes.

    `gpus` None: one where the cluster has any, since Ray hides the GPUs from a trial that asks for none.
    """

    address: str = LOCAL
    cpus: float = 1
    gpus: float | None = None


def check_address(address: str) -> None:
    """Raises ConfigError for what is no address of a cluster."""
    if address not in (LOCAL, "auto") and not re.fullmatch(r"[\w.-]+:\d+", address):
        raise ConfigError(
            f"--ray {address!r}: expected HOST:PORT of a cluster's head, 'auto' for the one that `ray start` began on "
            "this machine, or --ray alone, at the end, for one that lives as long as the command."
        )


def make_on_ray(folder: Path, study: Study, cluster: Cluster, begun: Begun, ended: Ended) -> None:
    """Make all trials that are left. Raises ToolError if the cluster cannot be reached or has no room for a trial."""
    with _connected(cluster) as takes:
        from ray import tune

        report = _callback(study, begun, ended)
        here = str(Path.cwd())

        def make(config: dict[str, Any]) -> None:
            from finetune.sweep.trial import make_trial
            from gladstone.commands.progress import Silent

            os.chdir(here)  # a recipe's paths are as the user wrote them
            make_trial(folder, config["trial"], Silent())
            tune.report({"trial": config["trial"]})

        tuner = tune.Tuner(
            tune.with_resources(make, takes),
            tune_config=tune.TuneConfig(search_alg=_searcher(study), num_samples=-1, metric="trial", mode="min"),
            run_config=tune.RunConfig(
                name=SCRATCH,
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[report],
                verbose=0,
            ),
        )
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # of a sweep that was killed
        tuner.fit()
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[dict[str, float]]:
    """What each trial takes, while the cluster is held."""
    os.environ |= SETTINGS
    import ray

    try:
        ray.init(
            address=cluster.address,
            include_dashboard=False if cluster.address == LOCAL else None,
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ToolError(f"--ray {cluster.address}: no cluster there: {error}") from error
    try:
        whole = ray.cluster_resources()
        gpus = min(1, whole.get("GPU", 0)) if cluster.gpus is None else cluster.gpus
        takes = {"CPU": cluster.cpus, "GPU": gpus}
        _check_room(cluster, takes, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield takes
    finally:
        ray.shutdown()


def _check_room(cluster: Cluster, takes: dict[str, float], machines: list[dict[str, float]]) -> None:
    """Ray would wait for ever for a machine that is large enough."""
    if not any(all(machine.get(kind, 0) >= count for kind, count in takes.items()) for machine in machines):
        rooms = "; ".join(f"{each.get('CPU', 0):g} and {each.get('GPU', 0):g}" for each in machines)
        raise ToolError(
            f"--ray {cluster.address}: no machine has the {takes['CPU']:g} processors and {takes['GPU']:g} GPUs that a "
            f"trial takes; they have {rooms}. Change --cpus or --gpus."
        )


def _searcher(study: Study) -> Any:
    """Ray Tune asks it for each trial's settings when there is room; the study answers."""
    from ray.tune.search import Searcher

    class Claims(Searcher):  # type: ignore[misc]  # ray is no package of the checks
        def __init__(self) -> None:
            super().__init__(metric="trial", mode="min")
            self._taken: dict[str, int] = {}

        def suggest(self, trial_id: str) -> Any:
            claim = study.claim(self._taken.values())
            if claim is None:
                return Searcher.FINISHED
            self._taken[trial_id] = claim.number
            return {"trial": claim.number, "begun": claim.begun}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self._taken.pop(trial_id, None)

        def save(self, checkpoint_path: str) -> None:
            """The study keeps itself."""

        def restore(self, checkpoint_path: str) -> None:
            """The study keeps itself."""

    return Claims()


def _callback(study: Study, begun: Begun, ended: Ended) -> Any:
    """Ray Tune's events, told by the trials' own numbers."""
    from ray import tune

    class Report(tune.Callback):  # type: ignore[misc]  # ray is no package of the checks
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            begun(trial.config["trial"], trial.config["begun"] or trial.num_failures > 0)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ended(trial.config["trial"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config["trial"]
            if study.state(number) == "RUNNING":
                study.fail(number, f"its worker failed {RETRIES + 1} times, the last time with: {_last_line(trial)}")
            ended(number)

    return Report()


def _last_line(trial: Any) -> str:
    """The end of a Ray trial's traceback."""
    path = Path(trial.error_file or "")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
