"""The metrics of a run, metrics.jsonl: one JSON line for each step, validation, sample, set of scores and event.

The file grows in the folder of checkpoints. Each checkpoint holds a copy, and a resumed run starts from that copy. At
the end of the training the file moves up, beside the adapter. A number that is not finite is written as a text (see
`gladstone.strict_json`).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from gladstone.errors import ArtifactError
from gladstone.strict_json import json_text, number, numbers

RESUME_HINT = "The checkpoints are intact: free disk space and continue with --resume."


@dataclass(frozen=True)
class StepStats:
    """One optimizer step: its loss is the mean over its target tokens, `padding_share` is padding over all tokens."""

    step: int
    loss_nats_per_token: float
    learning_rate: float
    grad_norm: float
    target_tokens: int
    tokens: int
    padding_share: float
    step_s: float

    @property
    def skipped(self) -> bool:
        """True if the adapter was not changed, because the loss or the gradient is not finite."""
        return not (math.isfinite(self.loss_nats_per_token) and math.isfinite(self.grad_norm))


@dataclass
class History:
    """What a metrics log holds, by kind, each in the order of its lines."""

    steps: list[StepStats] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss, the earliest of equals."""
        finite = (found for found in self.validation if math.isfinite(found[1]))
        return min(finite, key=lambda found: found[1], default=None)

    @property
    def applied(self) -> list[StepStats]:
        """The steps that changed the adapter: all but the skipped ones."""
        return [stats for stats in self.steps if not stats.skipped]

    @property
    def skipped_in_a_row(self) -> int:
        """Number of skipped steps since the last one that changed the adapter."""
        return sum(1 for _ in takewhile(lambda stats: stats.skipped, reversed(self.steps)))

    @property
    def tokens(self) -> int:
        """Tokens trained on, without padding."""
        return sum(stats.tokens for stats in self.steps)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line of metrics.jsonl. Raises KeyError or TypeError if a field is missing or unknown."""
        facts = dict(record)
        kind = facts.pop("kind")
        if kind == "step":
            self.steps.append(StepStats(**numbers(facts)))
        elif kind == "validation":
            self.validation.append((facts["step"], number(facts["loss_nats_per_token"])))
        elif kind == "scores":
            self.scores.append((facts.pop("step"), numbers(facts)))
        elif kind != "sample":
            self.events.append(dict(record))


def read_history(path: Path) -> History:
    """Read a metrics log that a run may still be writing: a last line without its line end is left out.

    Raises ArtifactError if the file cannot be read or any other line is damaged.
    """
    history, lines = History(), _lines(path)
    for place, line in enumerate(lines[:-1], 1):  # nothing follows the last line end
        try:
            history.add(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}:{place}: damaged ({error}).") from None
    return history


def _lines(path: Path) -> list[str]:
    """Split at "\\n" alone: a sample may hold other characters at which str.splitlines splits."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}.") from None


class MetricsLog:
    """A metrics log that is being written: its history and its file."""

    def __init__(self, path: Path, lines: bytes = b"") -> None:
        """Write `lines`, the log that a checkpoint holds, to the file. Raises ArtifactError if they are damaged."""
        self.history = History()
        self._path, self._lines = path, bytearray()
        try:
            for line in lines.splitlines():
                self.history.add(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{path}: cannot continue after damaged lines ({error}).") from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}.") from None
        if lines:
            try:
                self._write_lines(lines)
            except ArtifactError:
                self.close()
                raise

    @property
    def lines(self) -> bytes:
        """All lines so far."""
        return bytes(self._lines)

    def append_step(self, stats: StepStats) -> None:
        """Append a step."""
        self._write({"kind": "step", **dataclasses.asdict(stats)})

    def append(self, kind: str, step: int, **facts: Any) -> None:
        """Append a line of another kind: 'validation', 'scores', 'sample', or an event."""
        self._write({"kind": kind, "step": step, **facts})

    @property
    def size_bytes(self) -> int:
        """Length of all lines so far."""
        return len(self._lines)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._write_lines((json_text(record) + "\n").encode())
        self.history.add(record)

    def _write_lines(self, lines: bytes) -> None:
        try:
            written = self._file.write(lines)
        except OSError as error:
            raise ArtifactError(f"{self._path}: cannot be written: {error.strerror}. {RESUME_HINT}") from error
        if written != len(lines):
            raise ArtifactError(f"{self._path}: cannot be written: the disk is full. {RESUME_HINT}")
        self._lines += lines
