"""What the scheduler is given and what it gives: limits, tasks, steps of evaluation. Pure: no model in here."""

from dataclasses import dataclass, field
from typing import Protocol

from gladstone.errors import UnsupportedError


class QueueFullError(UnsupportedError):
    """More requests wait than the queue holds."""


class Memory(Protocol):
    """The cache of a model."""

    def share(self, source: int, target: int, count: int) -> None:
        """The empty sequence `target` begins with the first `count` tokens of `source`."""

    def clear(self) -> None:
        """Drop everything, and begin at the first cell again."""

    def cut(self, sequence: int, length: int) -> int:
        """Keep the first `length` tokens of a sequence; returns how many are left, 0 where it cannot be cut."""


@dataclass(frozen=True)
class Limits:
    """Sizes of an engine. `cells` are shared by all, `context_tokens` bound each request."""

    cells: int
    context_tokens: int
    slots: int = 1  # requests at work at a time
    sequences: int = 4  # those at work and those kept for who comes back
    batch_tokens: int = 512
    beside_tokens: int = 64  # of prompts, in a step in which somebody writes
    outputs: int = 64  # rows of logits in a step, where a task wants many: 64 of a vocabulary of 150,000 are 38 MB
    queue: int = 1024
    can_cut: bool = True  # False for a recurrent state: it can be taken up where it ended, nowhere else


@dataclass(eq=False)
class Task:
    """A request as the scheduler sees it. `tokens` grow, by whoever chooses them; the last is not evaluated yet.

    Outputs are wanted of the last token, or from the position `outputs_from` on. Tasks of one `group` share their
    beginnings with each other and with nobody else, start from an empty cache and leave nothing in it: what they give
    does not depend on what was asked before.
    """

    tokens: list[int]
    priority: int = 0
    adapters: tuple[float, ...] = ()
    outputs_from: int | None = None
    group: object = None
    drafts: list[int] = field(default_factory=list)  # guesses of what follows, to be evaluated with the last token

    evaluated: int = 0
    cached: int = 0  # of the prompt, found in the cache
    sequence: int | None = None
    arrival: int = 0
    passed: int = 0
    finished: bool = False

    @property
    def pending(self) -> int:
        """Tokens that are not evaluated."""
        return len(self.tokens) - self.evaluated

    @property
    def key(self) -> object:
        """Whose beginnings it can share."""
        return (self.adapters, self.group)


@dataclass(frozen=True)
class Part:
    """What a step evaluates of one task: `count` tokens from position `start` on, the last `drafts` of them guesses.

    They begin at the place `offset` of the batch. The outputs of the last `rows` of them are wanted; these are the rows
    from `first_row` on of the step's outputs.
    """

    task: Task
    offset: int
    start: int
    count: int
    drafts: int
    first_row: int
    rows: int


@dataclass
class Step:
    """One batch: tokens, their positions, sequences, and which outputs are wanted, all (N,)."""

    adapters: tuple[float, ...] = ()
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    wanted: list[bool] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    outputs: int = 0
