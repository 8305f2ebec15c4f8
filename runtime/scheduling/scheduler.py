"""Continuous batching: which tokens of which requests the next batch holds. Pure: the model is behind `KVCache`.

A request is a list of tokens that grows while its answer is decoded; the cache holds the first `evaluated` of them. A
batch holds one token of each request that decodes, and chunks of prompts in the room that is left. Prefill chunks stay
small while any request decodes, which bounds inter-token latency. A prompt starts from the longest prefix that the
cache holds, of an earlier request or of one whose prefill is under way.

When the cache is full, prefixes that no running request holds are evicted, the least recently used first; then the
request that ranks last is preempted and evaluated again later. The first in rank is never preempted, so that there is
always progress.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.errors import QueueFullError
from runtime.sampling.common_prefix import common_prefix_length
from runtime.scheduling.kv_cells import Cells
from runtime.scheduling.sequences import KVCache, Limits, Part, Slot, Step, Task

MIN_AWAITED_TOKENS = 32  # a shorter shared prefix is evaluated twice rather than waited for
HEADROOM_TOKENS = 16  # cells for the first tokens of an answer, so that a task is not preempted as soon as it starts
OVERTAKEN_PER_PRIORITY = 8  # a task that was overtaken so often ranks one priority higher
TURN_STEPS = 16  # steps for the requests of one set of adapters while those of another wait


@dataclass(eq=False)
class _CachedPrefix:
    """A sequence of the cache that no running request holds, and its tokens."""

    sequence: int
    tokens: list[int]
    key: object
    group: object


@dataclass(frozen=True)
class _SharedPrefix:
    """The longest prefix of a task that the cache holds: the first `count` tokens of `sequence`."""

    sequence: int | None = None
    count: int = 0


class Scheduler:
    """Decides what is evaluated, counts cells, and shares and evicts sequences. Use it from one thread.

    A task waits in `waiting` or runs in `running`: only a `Slot` there has a sequence of the cache.
    """

    def __init__(self, cache: KVCache, limits: Limits) -> None:
        """Raises ValueError for limits that contradict each other."""
        if not (limits.slots <= limits.sequences and limits.slots <= limits.batch_tokens):
            raise ValueError(f"{limits.slots} slots need as many sequences and tokens in a batch")
        if limits.context_tokens > limits.cells:
            raise ValueError(f"a context of {limits.context_tokens} tokens does not fit {limits.cells} cells")
        self.limits = limits
        self.cells = Cells(limits.cells)
        self.waiting: list[Task] = []
        self.running: list[Slot] = []
        self._cache = cache
        self._cached: list[_CachedPrefix] = []  # the least recently used first
        self._unused = list(range(limits.sequences - 1, -1, -1))
        self._arrivals = 0
        self._adapters: tuple[float, ...] = ()  # whose turn it is
        self._turn_steps = 0

    @property
    def idle(self) -> bool:
        """True if no task waits or runs."""
        return not self.waiting and not self.running

    def submit(self, task: Task) -> None:
        """Queue a task. Raises QueueFullError, and ValueError if the task can never fit."""
        if not 0 < len(task.tokens) <= self.limits.context_tokens:
            raise ValueError(f"{len(task.tokens)} tokens do not fit a context of {self.limits.context_tokens}")
        if len(self.waiting) >= self.limits.queue:
            raise QueueFullError(f"{len(self.waiting):,} requests wait already: ask again later.")
        self._arrivals += 1
        task.arrival = self._arrivals
        self.waiting.append(task)

    def finish(self, task: Task) -> None:
        """End a task, whether it waits or runs. What was evaluated stays cached for tasks with the same prefix."""
        task.finished = True
        if task in self.waiting:
            self.waiting.remove(task)
            return
        for slot in [slot for slot in self.running if slot.task is task]:
            self.running.remove(slot)
            self._keep_cached(slot)

    def plan(self) -> Step | None:
        """The next batch; None if there is nothing to evaluate."""
        self._admit()
        slots = sorted(self._slots_of_turn(), key=lambda slot: _rank(slot.task))
        if not slots:
            return None
        step = Step(self._adapters)
        for slot in [slot for slot in slots if slot.pending == 1]:
            self._schedule(step, slot, 1)
        room = self.limits.batch_tokens - len(step.tokens)
        room = min(room, self.limits.prefill_chunk_tokens) if step.tokens else room
        for slot in [slot for slot in slots if slot.pending > 1]:
            if room > 0:
                room -= self._schedule(step, slot, min(room, slot.pending))
        step = self._with_drafts(step)
        return step if step.tokens else None

    def decodes_alone(self) -> Slot | None:
        """The only slot, if the next batch is its last token. After it, call `append`, or `truncate` if it failed."""
        if len(self.running) == 1 and not self.waiting and self.cells.free:
            slot = self.running[0]
            if slot.pending == 1 and not slot.draft and slot.task.outputs_from is None:
                self._adapters = slot.task.adapters
                return slot
        return None

    def append(self, slot: Slot) -> None:
        """The slot's next token was evaluated."""
        self.cells.append(slot.sequence, 1)
        slot.evaluated += 1

    def truncate(self, slot: Slot) -> None:
        """An evaluation failed: drop what it left in the cache."""
        self._truncate(slot, slot.evaluated)

    def advance(self, part: Part, accepted: int) -> None:
        """The part was evaluated, and so many of its draft tokens were accepted. Sampled tokens may follow already."""
        slot = part.slot
        slot.evaluated = part.start + part.count - part.draft + accepted
        slot.draft = []
        if accepted < part.draft:
            self._truncate(slot, slot.evaluated)

    def roll_back(self, step: Step) -> None:
        """The step was aborted: restore the cache to what it held before."""
        for part in step.parts:
            self._truncate(part.slot, part.start)

    def evict_all(self) -> None:
        """Evict every prefix that no running request holds."""
        while self._cached:
            self._evict(self._cached[0])

    def _schedule(self, step: Step, slot: Slot, count: int) -> int:
        """Add the next tokens of a slot to the step, as many as there are cells for; returns how many."""
        if slot not in self.running:  # preempted meanwhile, for a task that ranks before it
            return 0
        if slot.task.outputs_from is not None:
            count = min(count, max(0, slot.task.outputs_from - slot.evaluated) + self.limits.outputs - step.outputs)
        count = self._make_room(slot, count, step)
        if count > 0:
            self._add_part(step, slot, count, 0)
        return count

    def _add_part(self, step: Step, slot: Slot, count: int, draft: int) -> None:
        start, task = slot.evaluated, slot.task
        self.cells.append(slot.sequence, count)
        first_output = len(task.tokens) - 1 if task.outputs_from is None else task.outputs_from
        is_output = [position >= first_output for position in range(start, start + count)]
        step.parts.append(Part(slot, len(step.tokens), start, count, draft, step.outputs, sum(is_output)))
        step.outputs += sum(is_output)
        step.tokens += (task.tokens[start : start + count] + slot.draft)[:count]
        step.positions += range(start, start + count)
        step.sequences += [slot.sequence] * count
        step.is_output += is_output

    def _with_drafts(self, step: Step) -> Step:
        """The step with draft tokens behind the last tokens, where batch, cells and context have room for them."""
        if not any(part.slot.draft for part in step.parts):
            return step
        room = self.limits.batch_tokens - len(step.tokens)
        grown = Step(step.adapters)
        for part in step.parts:
            slot, length = part.slot, len(part.slot.task.tokens)
            is_last = part.start + part.count == length
            limit = min(room, self.cells.free, self.limits.context_tokens - length) if is_last else 0
            slot.draft = slot.draft[: max(0, limit)]
            room -= len(slot.draft)
            self.cells.truncate(slot.sequence, part.start)
            self._add_part(grown, slot, part.count + len(slot.draft), len(slot.draft))
        return grown

    def _admit(self) -> None:
        if len(self.running) >= self.limits.slots or not self.waiting:
            return
        for task in sorted(self.waiting, key=_rank):
            if len(self.running) >= self.limits.slots:
                return
            if not self._group_may_start(task):
                return  # any later task would only delay it
            prefix = self._shared_prefix(task)
            if prefix is None:
                continue
            if self.running and self._cells_to_start(task, prefix) > self.cells.free + self._evictable_beside(prefix):
                return
            self._start(task, prefix)

    def _cells_to_start(self, task: Task, prefix: _SharedPrefix) -> int:
        """Cells that the task needs at first, and those that running tasks have yet to take for their prompts."""
        headroom = min(HEADROOM_TOKENS, self.limits.context_tokens - len(task.tokens))
        promised = sum(max(0, slot.pending - 1) for slot in self.running)
        return len(task.tokens) - prefix.count + headroom + promised

    def _evictable_beside(self, prefix: _SharedPrefix) -> int:
        """Evictable cells, without those of the prefix."""
        is_cached = any(cached.sequence == prefix.sequence for cached in self._cached)
        return self.cells.evictable - (prefix.count if is_cached else 0)

    def _group_may_start(self, task: Task) -> bool:
        """A group starts alone and from an empty cache; others wait until it is done."""
        if any(slot.task.group is not task.group for slot in self.running):
            return False
        if task.group is not None and not self.running:
            self._evict_other_groups(task.group)
            if not self._cached:
                self._cache.clear()
        return True

    def _evict_other_groups(self, group: object) -> None:
        for cached in [cached for cached in self._cached if cached.group is not group]:
            self._evict(cached)

    def _start(self, task: Task, prefix: _SharedPrefix) -> None:
        sequence = self._allocate(prefix)
        self.cells.pin(sequence)
        slot = Slot(task, sequence, self.cells.length(sequence))
        task.cached = max(task.cached, slot.evaluated)
        self.waiting.remove(task)
        self.running.append(slot)
        for other in self.waiting:
            other.overtaken += other.arrival < task.arrival

    def _allocate(self, prefix: _SharedPrefix) -> int:
        """A sequence that holds the prefix."""
        source, count = prefix.sequence, prefix.count
        while not self._unused and any(cached.sequence != source for cached in self._cached):
            self._evict(next(cached for cached in self._cached if cached.sequence != source))
        own = next((cached for cached in self._cached if cached.sequence == source), None)
        if own and (not self._unused or count == len(own.tokens)):  # nothing of it is left behind: continue in it
            self._cached.remove(own)
            self.cells.truncate(own.sequence, self._cache.truncate(own.sequence, count))
            return own.sequence
        sequence = self._unused.pop()
        if source is not None and count:
            self._cache.share(source, sequence, count)
            self.cells.share(source, sequence, count)
        if own:  # it is the most recently used
            self._cached.remove(own)
            self._cached.append(own)
        return sequence

    def _shared_prefix(self, task: Task) -> _SharedPrefix | None:
        """The longest prefix that the cache holds; None if a running task is about to evaluate a much longer one."""
        last = len(task.tokens) if task.outputs_from is None else task.outputs_from
        limit = min(len(task.tokens) - 1, last)
        best = _SharedPrefix()
        for sequence, tokens in self._sequences(task.key):
            count = common_prefix_length(task.tokens, tokens, limit)
            if not self.limits.can_truncate and count < len(tokens):
                continue
            if count > best.count:
                best = _SharedPrefix(sequence, count)
        if self.limits.can_truncate:
            for slot in self.running:
                if slot.task.key == task.key and slot.pending > 1:
                    coming = common_prefix_length(task.tokens, slot.task.tokens, limit)
                    if coming - best.count >= MIN_AWAITED_TOKENS:
                        return None
        return best

    def _sequences(self, key: object) -> Iterator[tuple[int, list[int]]]:
        """The sequences of that key, and the tokens that the cache holds of each."""
        for cached in self._cached:
            if cached.key == key:
                yield cached.sequence, cached.tokens
        for slot in self.running:
            if slot.task.key == key:
                yield slot.sequence, slot.task.tokens[: slot.evaluated]

    def _slots_of_turn(self) -> list[Slot]:
        """The slots of one set of adapters; the sets take turns."""
        sets = list(dict.fromkeys(slot.task.adapters for slot in self.running))
        if not sets:
            return []
        if self._adapters not in sets:
            self._adapters, self._turn_steps = sets[0], 0
        elif self._turn_steps >= TURN_STEPS and len(sets) > 1:
            self._adapters, self._turn_steps = sets[(sets.index(self._adapters) + 1) % len(sets)], 0
        self._turn_steps += 1
        return [slot for slot in self.running if slot.task.adapters == self._adapters]

    def _make_room(self, slot: Slot, count: int, step: Step) -> int:
        """How many of `count` cells are free, after evicting cached prefixes and preempting tasks that rank later."""
        while self.cells.free < count and self._cached:
            self._evict(self._cached[0])
        busy = {id(part.slot) for part in step.parts}
        later = [other for other in self.running if _rank(other.task) > _rank(slot.task) and id(other) not in busy]
        for other in sorted(later, key=lambda other: _rank(other.task), reverse=True):
            if self.cells.free >= count:
                break
            self._preempt(other)
        return min(count, self.cells.free)

    def _preempt(self, slot: Slot) -> None:
        self.running.remove(slot)
        self._release(slot.sequence)
        self.waiting.append(slot.task)

    def _keep_cached(self, slot: Slot) -> None:
        """Let later tasks share what the slot evaluated; the last task of a group leaves nothing."""
        task = slot.task
        self.cells.unpin(slot.sequence)
        tokens = task.tokens[: self.cells.length(slot.sequence)]
        if tokens:
            self._cached.append(_CachedPrefix(slot.sequence, tokens, task.key, task.group))
        else:
            self._release(slot.sequence)
        others = (*self.waiting, *(other.task for other in self.running))
        if task.group is not None and not any(other.group is task.group for other in others):
            self._evict_other_groups(None)

    def _evict(self, cached: _CachedPrefix) -> None:
        self._cached.remove(cached)
        self._release(cached.sequence)

    def _release(self, sequence: int) -> None:
        self._cache.truncate(sequence, 0)
        self.cells.truncate(sequence, 0)
        self.cells.unpin(sequence)
        self._unused.append(sequence)

    def _truncate(self, slot: Slot, length: int) -> None:
        slot.evaluated = self._cache.truncate(slot.sequence, length)
        self.cells.truncate(slot.sequence, slot.evaluated)


def _rank(task: Task) -> tuple[int, int]:
    """Lower runs first: by priority, raised for tasks that were overtaken often, then by arrival."""
    return (-(task.priority + task.overtaken // OVERTAKEN_PER_PRIORITY), task.arrival)
