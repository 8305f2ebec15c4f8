"""What a run tells about itself while it trains: one JSON line a step, a validation, a sample or an event.

The file grows in the checkpoints' folder; each checkpoint holds a copy, from which a run that goes on writes it anew.
When the training is done it moves up, beside the adapter.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError

GO_ON = "What the checkpoints hold is whole: make room and go on with --resume."


@dataclass(frozen=True)
class StepStats:
    """One optimizer step; the loss is the mean over the step's target tokens, `padding_share` is of all tokens."""

    step: int
    loss_nats_per_token: float
    learning_rate: float
    grad_norm: float
    target_tokens: int
    tokens: int
    padding_share: float
    step_s: float


@dataclass
class History:
    """All that was told so far, in its order."""

    steps: list[StepStats] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss, the earliest of equals."""
        return min(self.validation, key=lambda found: found[1], default=None)

    @property
    def tokens(self) -> int:
        """Real tokens trained on."""
        return sum(stats.tokens for stats in self.steps)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Take in what a line of metrics.jsonl says; raises KeyError or TypeError if it is none."""
        facts = dict(record)
        kind = facts.pop("kind")
        if kind == "step":
            self.steps.append(StepStats(**facts))
        elif kind == "validation":
            self.validation.append((facts["step"], facts["loss_nats_per_token"]))
        elif kind == "scores":
            self.scores.append((facts.pop("step"), facts))
        elif kind != "sample":
            self.events.append(dict(record))


def read_history(path: Path) -> History:
    """What a run has told so far, while it may still be writing: a last line without its end is left out.

    Raises ArtifactError if the file cannot be read or another line is damaged.
    """
    history, lines = History(), _lines(path)
    for number, line in enumerate(lines[:-1], 1):  # behind the last line's end comes nothing
        try:
            history.keep(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}:{number}: damaged ({error}).") from None
    return history


def _lines(path: Path) -> list[str]:
    """Split at line ends alone: a sample may hold other characters that Python takes for one."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None


class Journal:
    """The history and its file."""

    def __init__(self, path: Path, told: bytes = b"") -> None:
        """A file that begins with what was `told` before, and grows. Raises ArtifactError if that is no journal."""
        self.history = History()
        self._path, self._told = path, bytearray()
        try:
            for line in told.splitlines():
                self.history.keep(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{path}: cannot go on behind damaged lines ({error}).") from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}.") from None
        if told:
            try:
                self._append(told)
            except ArtifactError:
                self.close()
                raise

    @property
    def told(self) -> bytes:
        """All lines so far."""
        return bytes(self._told)

    def step(self, stats: StepStats) -> None:
        """Note a step."""
        self._write({"kind": "step", **dataclasses.asdict(stats)})

    def note(self, kind: str, step: int, **facts: Any) -> None:
        """Note anything else: 'validation', 'scores', 'sample' or an event."""
        self._write({"kind": kind, "step": step, **facts})

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._append((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self.history.keep(record)

    def _append(self, lines: bytes) -> None:
        try:
            written = self._file.write(lines)
        except OSError as error:
            raise ArtifactError(f"{self._path}: cannot be written: {error.strerror}. {GO_ON}") from error
        if written != len(lines):
            raise ArtifactError(f"{self._path}: cannot be written: the disk is full. {GO_ON}")
        self._told += lines
