"""Continuous batching: which tokens of which requests are evaluated next. Pure: the model is behind `Memory`.

Every request is a list of tokens, of which the first `evaluated` are in the cache; it grows while its answer is
written. A step takes one token of each request that is writing, and fills the rest of the batch with pieces of
prompts: few beside somebody who is writing, so that nobody waits long for his next token. A prompt begins with what
the cache has of it already, from an earlier request or from one that is read at the moment.

When the cache is full, what nobody works with is dropped, the longest unused first; then the request that came last
gives its cells back and is read again later. The first in rank is never touched, so that the work always goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.scheduling.kv_cells import Cells
from runtime.scheduling.sequences import Limits, Memory, Part, QueueFullError, Step, Task

WORTH_WAITING_TOKENS = 32  # a common beginning shorter than this is read twice rather than waited for
HEADROOM_TOKENS = 16  # cells for the beginning of an answer, so that who is let in is not put out at once
PASSES_PER_PRIORITY = 8  # who was overtaken so often ranks one priority higher
TURN_STEPS = 16  # steps for the requests of one set of adapters while those of another wait


@dataclass(eq=False)
class _Kept:
    """A sequence that nobody works with, and what it holds."""

    sequence: int
    tokens: list[int]
    key: object
    group: object


class Scheduler:
    """Decides, counts, and tells the memory what to share and to drop. Use it from one thread."""

    def __init__(self, memory: Memory, limits: Limits) -> None:
        """Raises ValueError for limits that contradict each other."""
        if not (limits.slots <= limits.sequences and limits.slots <= limits.batch_tokens):
            raise ValueError(f"{limits.slots} slots need as many sequences and tokens in a batch")
        if limits.context_tokens > limits.cells:
            raise ValueError(f"a context of {limits.context_tokens} tokens does not fit {limits.cells} cells")
        self.limits = limits
        self.cells = Cells(limits.cells)
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self._memory = memory
        self._kept: list[_Kept] = []  # the longest unused first
        self._unused = list(range(limits.sequences - 1, -1, -1))
        self._arrivals = 0
        self._turn: tuple[float, ...] = ()
        self._turn_steps = 0

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return not self.waiting and not self.running

    def submit(self, task: Task) -> None:
        """Let a task wait for its turn. Raises QueueFullError, and ValueError if it can never fit."""
        if not 0 < len(task.tokens) <= self.limits.context_tokens:
            raise ValueError(f"{len(task.tokens)} tokens do not fit a context of {self.limits.context_tokens}")
        if len(self.waiting) >= self.limits.queue:
            raise QueueFullError(f"{len(self.waiting):,} requests wait already: ask again later.")
        self._arrivals += 1
        task.arrival = self._arrivals
        self.waiting.append(task)

    def finish(self, task: Task) -> None:
        """The task ends here, wherever it is; what was evaluated is kept for who comes back with the same beginning."""
        task.finished = True
        if task in self.waiting:
            self.waiting.remove(task)
        elif task in self.running:
            self.running.remove(task)
            sequence, task.sequence = task.sequence, None
            assert sequence is not None  # noqa: S101 - every running task has one
            self._keep(sequence, task)

    def plan(self) -> Step | None:
        """The next batch; None if nobody has anything to evaluate."""
        self._admit()
        tasks = sorted(self._of_this_turn(), key=_rank)
        if not tasks:
            return None
        step = Step(self._turn)
        writing = [task for task in tasks if task.pending == 1]
        reading = [task for task in tasks if task.pending > 1]
        for task in writing:
            self._take(step, task, 1)
        room = self.limits.batch_tokens - len(step.tokens)
        room = min(room, self.limits.beside_tokens) if step.tokens else room
        for task in reading:
            if room > 0:
                room -= self._take(step, task, min(room, task.pending))
        step = self._with_guesses(step)
        return step if step.tokens else None

    def writes_alone(self) -> Task | None:
        """The only task, if the next batch is its last token; `append` tells that it was evaluated, `cut` that not."""
        if len(self.running) == 1 and not self.waiting and self.cells.free:
            task = self.running[0]
            if task.pending == 1 and not task.drafts and task.outputs_from is None:
                self._turn = task.adapters
                return task
        return None

    def append(self, task: Task) -> None:
        """The task's next token is in the cache."""
        assert task.sequence is not None  # noqa: S101
        self.cells.append(task.sequence, 1)
        task.evaluated += 1

    def cut(self, task: Task) -> None:
        """The cache may hold more of the task than was evaluated: it does not any more."""
        if task.sequence is not None:
            self._cut(task, task.evaluated)

    def advance(self, part: Part, kept_drafts: int) -> None:
        """The part was evaluated, and so many of its guesses were right. Tokens that were chosen may follow already."""
        task = part.task
        task.evaluated = part.start + part.count - part.drafts + kept_drafts
        task.drafts = []
        if kept_drafts < part.drafts and task.sequence is not None:
            self._cut(task, task.evaluated)

    def undo(self, step: Step) -> None:
        """The step was broken off: the cache is as before it."""
        for part in step.parts:
            if part.task.sequence is not None:
                self._cut(part.task, part.start)

    def forget(self) -> None:
        """Drop all that nobody works with."""
        while self._kept:
            self._drop(self._kept[0])

    def _take(self, step: Step, task: Task, count: int) -> int:
        """Put the next tokens of a task into the step, as many as there are cells for; returns how many."""
        if task.sequence is None:  # it gave its cells to one that ranks before it
            return 0
        if task.outputs_from is not None:
            count = min(count, max(0, task.outputs_from - task.evaluated) + self.limits.outputs - step.outputs)
        count = self._make_room(task, count, step)
        if count > 0:
            self._add(step, task, count, 0)
        return count

    def _add(self, step: Step, task: Task, count: int, drafts: int) -> None:
        assert task.sequence is not None  # noqa: S101
        start = task.evaluated
        self.cells.append(task.sequence, count)
        first_wanted = len(task.tokens) - 1 if task.outputs_from is None else task.outputs_from
        wanted = [position >= first_wanted for position in range(start, start + count)]
        step.parts.append(Part(task, len(step.tokens), start, count, drafts, step.outputs, sum(wanted)))
        step.outputs += sum(wanted)
        step.tokens += (task.tokens[start : start + count] + task.drafts)[:count]
        step.positions += range(start, start + count)
        step.sequences += [task.sequence] * count
        step.wanted += wanted

    def _with_guesses(self, step: Step) -> Step:
        """The step with guesses behind the last tokens, where batch, cells and context have room for them."""
        if not any(part.task.drafts for part in step.parts):
            return step
        room = self.limits.batch_tokens - len(step.tokens)
        grown = Step(step.adapters)
        for part in step.parts:
            task = part.task
            ends = part.start + part.count == len(task.tokens)
            most = min(room, self.cells.free, self.limits.context_tokens - len(task.tokens)) if ends else 0
            task.drafts = task.drafts[: max(0, most)]
            room -= len(task.drafts)
            assert task.sequence is not None  # noqa: S101
            self.cells.cut(task.sequence, part.start)
            self._add(grown, task, part.count + len(task.drafts), len(task.drafts))
        return grown

    def _admit(self) -> None:
        if len(self.running) >= self.limits.slots or not self.waiting:
            return
        for task in sorted(self.waiting, key=_rank):
            if len(self.running) >= self.limits.slots:
                return
            if not self._group_may_start(task):
                return  # whoever comes after it would only make it wait longer
            source, count = self._beginning(task)
            if count < 0:
                continue
            need = len(task.tokens) - count + min(HEADROOM_TOKENS, self.limits.context_tokens - len(task.tokens))
            promised = sum(max(0, other.pending - 1) for other in self.running)
            loose = self.cells.loose - (self._loose_of(source, count) if source is not None else 0)
            if need + promised > self.cells.free + loose and self.running:
                return
            self._start(task, source, count)

    def _group_may_start(self, task: Task) -> bool:
        """A group starts alone and from an empty cache; others wait until it is done."""
        if any(other.group is not task.group for other in self.running):
            return False
        if task.group is not None and not self.running:
            self._drop_all_but(task.group)
            if not self._kept:
                self._memory.clear()
        return True

    def _drop_all_but(self, group: object) -> None:
        for kept in [kept for kept in self._kept if kept.group is not group]:
            self._drop(kept)

    def _start(self, task: Task, source: int | None, count: int) -> None:
        sequence = self._take_up(source, count)
        self.cells.pin(sequence)
        task.sequence, task.evaluated = sequence, self.cells.length(sequence)
        task.cached = max(task.cached, task.evaluated)
        self.waiting.remove(task)
        self.running.append(task)
        for other in self.waiting:
            other.passed += other.arrival < task.arrival

    def _take_up(self, source: int | None, count: int) -> int:
        """A sequence that holds the first `count` tokens of another one."""
        while not self._unused and any(kept.sequence != source for kept in self._kept):
            self._drop(next(kept for kept in self._kept if kept.sequence != source))
        own = next((kept for kept in self._kept if kept.sequence == source), None)
        if own and (not self._unused or count == len(own.tokens)):  # nothing of it is left behind: go on in it
            self._kept.remove(own)
            self.cells.cut(own.sequence, self._memory.cut(own.sequence, count))
            return own.sequence
        sequence = self._unused.pop()
        if source is not None and count:
            self._memory.share(source, sequence, count)
            self.cells.share(source, sequence, count)
        if own:  # it was used just now
            self._kept.remove(own)
            self._kept.append(own)
        return sequence

    def _beginning(self, task: Task) -> tuple[int | None, int]:
        """The sequence that holds most of the task's beginning, and how much; (…, -1) if it is worth waiting for."""
        most = min(len(task.tokens) - 1, len(task.tokens) if task.outputs_from is None else task.outputs_from)
        best, best_count = None, 0
        for sequence, tokens in self._held(task.key):
            count = common_length(task.tokens, tokens, most)
            if not self.limits.can_cut and count < len(tokens):
                continue
            if count > best_count:
                best, best_count = sequence, count
        if self.limits.can_cut:
            for other in self.running:
                if other.key == task.key and other.pending > 1:
                    coming = common_length(task.tokens, other.tokens, most)
                    if coming - best_count >= WORTH_WAITING_TOKENS:
                        return None, -1
        return best, best_count

    def _held(self, key: object) -> Iterator[tuple[int, list[int]]]:
        """The sequences of that key, and the tokens that each holds."""
        for kept in self._kept:
            if kept.key == key:
                yield kept.sequence, kept.tokens
        for task in self.running:
            if task.key == key and task.sequence is not None:
                yield task.sequence, task.tokens[: task.evaluated]

    def _loose_of(self, sequence: int, count: int) -> int:
        """How many loose cells are not to be had, if this beginning is used."""
        return count if any(kept.sequence == sequence for kept in self._kept) else 0

    def _of_this_turn(self) -> list[Task]:
        """The running tasks of one set of adapters; the sets take turns."""
        sets = list(dict.fromkeys(task.adapters for task in self.running))
        if not sets:
            return []
        if self._turn not in sets:
            self._turn, self._turn_steps = sets[0], 0
        elif self._turn_steps >= TURN_STEPS and len(sets) > 1:
            self._turn, self._turn_steps = sets[(sets.index(self._turn) + 1) % len(sets)], 0
        self._turn_steps += 1
        return [task for task in self.running if task.adapters == self._turn]

    def _make_room(self, task: Task, count: int, step: Step) -> int:
        """How many of `count` cells there are, after dropping what nobody needs and putting out who came later."""
        while self.cells.free < count and self._kept:
            self._drop(self._kept[0])
        busy = {id(part.task) for part in step.parts}
        later = [other for other in self.running if _rank(other) > _rank(task) and id(other) not in busy]
        for other in sorted(later, key=_rank, reverse=True):
            if self.cells.free >= count:
                break
            self._put_out(other)
        return min(count, self.cells.free)

    def _put_out(self, task: Task) -> None:
        assert task.sequence is not None  # noqa: S101
        self.running.remove(task)
        self._release(task.sequence)
        task.sequence, task.evaluated, task.drafts = None, 0, []
        self.waiting.append(task)

    def _keep(self, sequence: int, task: Task) -> None:
        self.cells.unpin(sequence)
        tokens = task.tokens[: self.cells.length(sequence)]
        if tokens:
            self._kept.append(_Kept(sequence, tokens, task.key, task.group))
        else:
            self._release(sequence)
        others = (*self.waiting, *self.running)
        if task.group is not None and not any(other.group is task.group for other in others):
            self._drop_all_but(None)

    def _drop(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self._release(kept.sequence)

    def _release(self, sequence: int) -> None:
        self._memory.cut(sequence, 0)
        self.cells.cut(sequence, 0)
        self.cells.unpin(sequence)
        self._unused.append(sequence)

    def _cut(self, task: Task, length: int) -> None:
        assert task.sequence is not None  # noqa: S101
        left = self._memory.cut(task.sequence, length)
        self.cells.cut(task.sequence, left)
        task.evaluated = left


def common_length(first: Sequence[int], second: Sequence[int], most: int) -> int:
    """How many tokens two lists begin with alike, `most` at most."""
    most = min(most, len(first), len(second))
    if first[:most] == second[:most]:
        return most
    low, high = 0, most  # alike up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _rank(task: Task) -> tuple[int, int]:
    """Lower goes first: by priority, raised for who was overtaken often, then by arrival."""
    return (-(task.priority + task.passed // PASSES_PER_PRIORITY), task.arrival)
