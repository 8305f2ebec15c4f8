"""What the scheduler takes and returns: limits, tasks, slots, batches. Pure: no model in here."""

from dataclasses import dataclass, field
from typing import Protocol


class KVCache(Protocol):
    """The KV cache of a model, addressed by sequence."""

    def share(self, source: int, target: int, count: int) -> None:
        """Let the empty sequence `target` begin with the first `count` tokens of `source`."""

    def clear(self) -> None:
        """Empty the cache; the next token takes the first cell."""

    def truncate(self, sequence: int, length: int) -> int:
        """Keep the first `length` tokens of a sequence; returns how many are left: 0 where it cannot be truncated."""


@dataclass(frozen=True)
class Limits:
    """Sizes of an engine. All requests share `cells`; `context_tokens` bounds each of them."""

    cells: int
    context_tokens: int
    slots: int = 1  # requests that run at a time
    sequences: int = 4  # those of running requests, and of prefixes that stay cached
    batch_tokens: int = 512
    prefill_chunk_tokens: int = 64  # of prompts, in a batch that decodes too
    outputs: int = 64  # rows of logits in a batch, where a task has many: 64 of a vocabulary of 150,000 are 38 MB
    queue: int = 1024
    can_truncate: bool = True  # False for a recurrent state: it continues at its end, and nowhere else


@dataclass(eq=False)
class Task:
    """A request as the scheduler sees it. `tokens` grow as tokens are sampled; the last one is not evaluated yet.

    Its outputs are those of the last token, or from the position `outputs_from` on. Tasks of one `group` share prefixes
    with each other only, start from an empty cache and leave nothing in it: their outputs do not depend on earlier
    requests.
    """

    tokens: list[int]
    priority: int = 0
    adapters: tuple[float, ...] = ()
    outputs_from: int | None = None
    group: object = None

    cached: int = 0  # tokens of the prompt that the cache held already
    arrival: int = 0
    overtaken: int = 0  # how often a later task started first
    finished: bool = False

    @property
    def key(self) -> object:
        """Tasks with equal keys can share a prefix."""
        return (self.adapters, self.group)


@dataclass(eq=False)
class Slot:
    """A running task and its sequence of the cache, which holds the first `evaluated` tokens.

    A preempted task loses its slot, and gets a new one when it resumes.
    """

    task: Task
    sequence: int
    evaluated: int
    draft: list[int] = field(default_factory=list)  # draft tokens, to be verified with the last token

    @property
    def pending(self) -> int:
        """Tokens that are not evaluated."""
        return len(self.task.tokens) - self.evaluated


@dataclass(frozen=True)
class Part:
    """What a step evaluates of one task: `count` tokens from position `start` on, the last `draft` of them a draft.

    They begin at index `offset` of the batch. The last `rows` of them have outputs: the rows of the step's outputs from
    `first_row` on.
    """

    slot: Slot
    offset: int
    start: int
    count: int
    draft: int
    first_row: int
    rows: int


@dataclass
class Step:
    """One batch: tokens, their positions, sequences, and whether each token has an output, all (N,)."""

    adapters: tuple[float, ...] = ()
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    is_output: list[bool] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    outputs: int = 0
