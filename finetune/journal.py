"""What a run tells about itself while it trains: one JSON line a step, a validation, a sample or an event.

The file grows under the checkpoints' folder; a run that goes on cuts off what came after its checkpoint. It gets its
final name, metrics.jsonl, when the training is done.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gladstone.errors import ArtifactError


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


class Journal:
    """The history and its file."""

    def __init__(self, path: Path) -> None:
        """Append to a file; `new` and `at` say behind what."""
        self.history = History()
        self._file = path.open("ab")

    @classmethod
    def new(cls, path: Path) -> Self:
        """Begin anew."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return cls(path)

    @classmethod
    def at(cls, path: Path, position: int) -> Self:
        """Go on behind the first `position` bytes. Raises ArtifactError if the file has not as many."""
        if not path.is_file() or path.stat().st_size < position:
            raise ArtifactError(f"{path}: shorter than when the checkpoint was saved.")
        with path.open("rb+") as file:
            file.truncate(position)
        journal = cls(path)
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                journal._keep(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: damaged ({error}).") from None
        return journal

    @property
    def position(self) -> int:
        """Bytes written; they are on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

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
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self._file.flush()
        self._keep(record)

    def _keep(self, record: dict[str, Any]) -> None:
        facts = dict(record)
        kind = facts.pop("kind")
        if kind == "step":
            self.history.steps.append(StepStats(**facts))
        elif kind == "validation":
            self.history.validation.append((facts["step"], facts["loss_nats_per_token"]))
        elif kind == "scores":
            self.history.scores.append((facts.pop("step"), facts))
        elif kind != "sample":
            self.history.events.append(record)
