"""Runs trials on the machines of a Ray cluster, which share the sweep folder. Names ray.

The study holds the state of the sweep. Ray Tune schedules trials, detects dead workers and restarts their trials
elsewhere, where they continue from the checkpoint in their run folder.
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
from gladstone.machine.gpu import Wanted

LOCAL = "local"
SCRATCH = ".ray"  # the state of Ray Tune, which is not kept: the study holds that of the sweep
RETRIES = 3
# Ray reads these at import: no telemetry, and Ctrl-C is handled here
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
OnTrialStart = Callable[[int, bool], None]
OnTrialEnd = Callable[[int], None]


@dataclass(frozen=True)
class Cluster:
    """A cluster by its address ('local': one on this machine), the resources of a trial, and what it computes on.

    `gpus` None means one if the cluster has any: Ray hides the GPUs from a trial that requests none.
    """

    address: str = LOCAL
    cpus: float = 1
    gpus: float | None = None
    device: Wanted = "auto"


def check_address(address: str) -> None:
    """Raises ConfigError for an invalid cluster address."""
    if address not in (LOCAL, "auto") and not re.fullmatch(r"[\w.-]+:\d+", address):
        raise ConfigError(
            f"--ray {address!r}: expected HOST:PORT of the head node, 'auto' for a cluster that `ray start` started on "
            "this machine, or --ray alone at the end of the line for a temporary local cluster."
        )


def run_on_ray(folder: Path, study: Study, cluster: Cluster, begun: OnTrialStart, ended: OnTrialEnd) -> None:
    """Run all remaining trials. Raises ToolError if the cluster is unreachable or too small for a trial."""
    with _connect(cluster) as resources:
        from ray import tune

        report = _callback(study, begun, ended)
        here = str(Path.cwd())

        def make(config: dict[str, Any]) -> None:
            from finetune.sweep.trial import run_trial
            from gladstone.commands.progress import Silent

            os.chdir(here)  # paths in a recipe are relative to the directory of the command
            run_trial(folder, config["trial"], Silent(), cluster.device)
            tune.report({"trial": config["trial"]})

        tuner = tune.Tuner(
            tune.with_resources(make, resources),
            tune_config=tune.TuneConfig(search_alg=_searcher(study), num_samples=-1, metric="trial", mode="min"),
            run_config=tune.RunConfig(
                name=SCRATCH,
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[report],
                verbose=0,
            ),
        )
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # left over from a killed sweep
        tuner.fit()
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)


@contextmanager
def _connect(cluster: Cluster) -> Iterator[dict[str, float]]:
    """Connect to the cluster and yield the resources of a trial."""
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
        raise ToolError(f"--ray {cluster.address}: cannot connect to a cluster: {error}") from error
    try:
        whole = ray.cluster_resources()
        gpus = min(1, whole.get("GPU", 0)) if cluster.gpus is None else cluster.gpus
        resources = {"CPU": cluster.cpus, "GPU": gpus}
        _check_capacity(cluster, resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield resources
    finally:
        ray.shutdown()


def _check_capacity(cluster: Cluster, resources: dict[str, float], machines: list[dict[str, float]]) -> None:
    """Raise ToolError if no machine is large enough, for which Ray would wait forever."""
    if not any(all(machine.get(kind, 0) >= count for kind, count in resources.items()) for machine in machines):
        capacities = "; ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in machines)
        raise ToolError(
            f"--ray {cluster.address}: a trial needs {resources['CPU']:g} processors and {resources['GPU']:g} GPUs, "
            f"and no machine has them; the machines have {capacities}. Change --cpus or --gpus."
        )


def _searcher(study: Study) -> Any:
    """The searcher that Ray Tune asks for the next trial, which comes from the study."""
    from ray.tune.search import Searcher

    class Claims(Searcher):  # type: ignore[misc]  # ray is not installed where types are checked
        def __init__(self) -> None:
            super().__init__(metric="trial", mode="min")
            self._taken: dict[str, int] = {}

        def suggest(self, trial_id: str) -> Any:
            claim = study.claim(self._taken.values())
            if claim is None:
                return Searcher.FINISHED
            self._taken[trial_id] = claim.number
            return {"trial": claim.number, "resumed": claim.resumed}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self._taken.pop(trial_id, None)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to do: the study is stored in its journal."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing to do: the study is stored in its journal."""

    return Claims()


def _callback(study: Study, begun: OnTrialStart, ended: OnTrialEnd) -> Any:
    """The callback that passes Ray Tune's events on with the trial numbers of the study."""
    from ray import tune

    class Report(tune.Callback):  # type: ignore[misc]  # ray is not installed where types are checked
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            begun(trial.config["trial"], trial.config["resumed"] or trial.num_failures > 0)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ended(trial.config["trial"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config["trial"]
            if study.state(number) == "RUNNING":
                study.fail(number, f"its worker failed {RETRIES + 1} times, most recently with: {_last_line(trial)}")
            ended(number)

    return Report()


def _last_line(trial: Any) -> str:
    """The last line of a Ray trial's traceback."""
    path = Path(trial.error_file or "")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
