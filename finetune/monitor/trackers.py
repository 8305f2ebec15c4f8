"""Logs metrics to TensorBoard, W&B and trackio, if a recipe names them. Names torch, tensorboard, wandb, trackio.

Without training.report_to nothing here is imported and nothing is sent. TensorBoard and W&B write into the run folder;
W&B also uploads unless WANDB_MODE=offline. trackio writes into its own folder, see TRACKIO_DIR.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import StepStats
from gladstone import run_folder
from gladstone.artifacts import write_text
from gladstone.errors import ConfigError, ToolError
from gladstone.machine.packages import require_packages

Tracker = Literal["tensorboard", "wandb", "trackio"]
PROJECT, RUN_ID = "gladstone", "tracker-id"
NOT_SENT = ("offline", "disabled", "dryrun")  # of W&B's modes


class Sink(Protocol):
    """A destination of metrics."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""

    def close(self, *, failed: bool) -> None:
        """Flush and close."""


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises UnsupportedError if a package is missing, ConfigError if W&B has no API key."""
    require_packages("training.report_to", "trackers", names)
    if "wandb" not in names:
        return
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode not in NOT_SENT and not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "training.report_to: wandb has no API key on this machine. Run `wandb login`, or set WANDB_MODE=offline to "
            "keep the run on this machine and upload it later with `wandb sync`."
        )


class TrackerCallback(Callback):
    """Logs a training to the trackers; a context manager that closes them.

    The trackers open at the first metric. With `resume` the run continues under its previous name.
    """

    def __init__(
        self, names: Sequence[Tracker], run: str, out: Path, config: Mapping[str, Any], *, resume: bool
    ) -> None:
        self._names, self._run, self._out, self._config, self._resume = names, run, out, dict(config), resume
        self._sinks: list[Sink] = []
        self._step = 0
        self._failed = False
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        self._opened.close()

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """Log a step."""
        self._step = stats.step
        values = {
            "train/loss": stats.loss_nats_per_token,
            "train/learning_rate": stats.learning_rate,
            "train/grad_norm": stats.grad_norm,
            "train/padding_share": stats.padding_share,
            "train/progress": stats.step / total,
            "train/skipped": float(stats.skipped),
        }
        if stats.step_s:
            values["train/tokens_per_s"] = stats.tokens / stats.step_s
        self._log(values, stats.step)

    def on_validation_end(self, step: int, loss: float) -> None:
        """Log a validation."""
        self._log({"validation/loss": loss, "validation/perplexity": _perplexity(loss)}, step)

    def on_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores of sampled answers."""
        self._log({f"samples/{name}": value for name, value in scores.items()}, step)

    def log_held_out(self, before: float, after: float) -> None:
        """Log the held-out losses at the end."""
        values = {"held_out/loss_before": before, "held_out/loss_after": after}
        self._log(values | {"held_out/perplexity_after": _perplexity(after)}, self._step)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        """Pass on the finite values: trackers store JSON, too."""
        if self._names and not self._sinks:
            self._open(step)
        for sink in self._sinks:
            sink.log({name: value for name, value in values.items() if math.isfinite(value)}, step)

    def _open(self, step: int) -> None:
        name = f"{self._run}-{self._run_id()}"
        for tracker in self._names:
            sink = OPENERS[tracker](name, self._out, self._config, step)
            self._opened.callback(self._close, sink)
            self._sinks.append(sink)

    def _close(self, sink: Sink) -> None:
        sink.close(failed=self._failed)

    def _run_id(self) -> str:
        """A suffix that makes the run name unique, stored beside the checkpoints for a resume."""
        path = self._out / run_folder.CHECKPOINTS / RUN_ID
        if self._resume and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        made = secrets.token_hex(4)
        write_text(path, f"{made}\n")
        return made


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


class _TensorBoard:
    def __init__(self, _name: str, out: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what was logged at this step or later before a resume is discarded
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)
        self._writer.add_text("recipe", "\n".join(f"    {name}: {value}" for name, value in config.items()), step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, name: str, out: Path, config: Mapping[str, Any], _step: int) -> None:
        import wandb

        # do not capture the output, and do not upload code or git metadata
        settings = wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True)
        try:
            self._run = wandb.init(
                project=PROJECT,
                name=name,
                id=name,
                dir=str(out),
                config=dict(config),
                resume="allow",
                settings=settings,
            )
        except (wandb.errors.Error, OSError) as error:
            raise ToolError(
                f"training.report_to: cannot start wandb: {error}. With WANDB_MODE=offline the run stays "
                "on this machine and can be uploaded later with `wandb sync`."
            ) from error
        self._run.define_metric("*", step_metric="step")  # its own counter rejects repeated steps

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, name: str, _out: Path, config: Mapping[str, Any], _step: int) -> None:
        import trackio

        try:
            self._run = trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow", embed=False)
        except (OSError, ValueError) as error:
            raise ToolError(f"training.report_to: cannot start trackio: {error}.") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish()


OPENERS: Mapping[Tracker, Callable[[str, Path, Mapping[str, Any], int], Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
