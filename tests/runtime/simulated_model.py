"""A model whose next token depends on every token of its sequence, over a cache that rejects every mistake."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.sequences import Limits, Part, Slot, Step, Task

VOCABULARY = 97


def next_token(tokens: list[int]) -> int:
    """The token that this model samples after these tokens."""
    value = 17
    for token in tokens:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCABULARY


def alone(prompt: list[int], count: int) -> list[int]:
    """The answer to a prompt when no other request runs."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class SimulatedCache:
    """Cells with a position, a token and the sequences that see them, as llama.cpp keeps them."""

    def __init__(self, capacity: int, *, can_truncate: bool = True) -> None:
        self.capacity, self.can_truncate = capacity, can_truncate
        self.cells: list[tuple[int, int, set[int]]] = []
        self.peak = 0
        self.read = 0

    def share(self, source: int, target: int, count: int) -> None:
        assert not self.sequence(target), "the target of a copy holds something"
        for position, _token, owners in self.cells:
            if source in owners and position < count:
                owners.add(target)
        assert len(self.sequence(target)) == count

    def truncate(self, sequence: int, length: int) -> int:
        if not self.can_truncate and length < len(self.sequence(sequence)):
            length = 0
        for position, _token, owners in self.cells:
            if sequence in owners and position >= length:
                owners.remove(sequence)
        self.cells = [cell for cell in self.cells if cell[2]]
        return length

    def clear(self) -> None:
        self.cells = []

    def sequence(self, sequence: int) -> list[int]:
        cells = sorted((position, token) for position, token, owners in self.cells if sequence in owners)
        assert [position for position, _ in cells] == list(range(len(cells))), "a position is missing or there twice"
        return [token for _, token in cells]

    def evaluate(self, step: Step) -> list[int]:
        """The next token after each token of the batch that has an output."""
        out = []
        for token, position, sequence, is_output in zip(
            step.tokens, step.positions, step.sequences, step.is_output, strict=True
        ):
            assert position == len(self.sequence(sequence)), "a token at the wrong position"
            self.cells.append((position, token, {sequence}))
            if is_output:
                out.append(next_token(self.sequence(sequence)))
        self.read += len(step.tokens)
        self.peak = max(self.peak, len(self.cells))
        assert len(self.cells) <= self.capacity, "more cells than there are"
        return out


@dataclass
class Simulation:
    """A scheduler at work, and what it did."""

    limits: Limits
    draft: Callable[[Task], list[int]] = lambda _task: []
    steps: list[Step] = field(default_factory=list)
    answers: dict[Task, int] = field(default_factory=dict)  # tokens that each still has to get
    scored: dict[Task, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = SimulatedCache(self.limits.cells, can_truncate=self.limits.can_truncate)
        self.scheduler = Scheduler(self.cache, self.limits)

    def ask(self, prompt: list[int], count: int, **options: object) -> Task:
        task = Task(list(prompt), **options)  # type: ignore[arg-type]
        self.answers[task] = count
        self.scheduler.submit(task)
        return task

    def answer(self, task: Task, prompt: list[int]) -> list[int]:
        return task.tokens[len(prompt) :]

    def step(self, *, aborted: bool = False) -> Step | None:
        for slot in self.scheduler.running:
            if slot.pending == 1 and slot.task.outputs_from is None:
                slot.draft = self.draft(slot.task)
        alone = self.scheduler.decodes_alone()
        if alone is not None:
            return self._step_alone(alone, aborted=aborted)
        step = self.scheduler.plan()
        if step is None:
            return None
        self.steps.append(step)
        if aborted:
            self._half_evaluate(step)
            return step
        outputs = self.cache.evaluate(step)
        for part in step.parts:
            self._take(part, outputs[part.first_row : part.first_row + part.rows])
        self._check_counts()
        return step

    def run(self, max_steps: int = 100_000) -> None:
        for _ in range(max_steps):
            if self.scheduler.idle:
                return
            assert self.step() is not None, "there are tasks, and nothing is done"
        raise AssertionError("it does not end")

    def _take(self, part: Part, outputs: list[int]) -> None:
        task, draft = part.slot.task, part.slot.draft
        if task.outputs_from is not None:
            self._score(part, outputs)
            return
        accepted = 0
        done = False
        for index, token in enumerate(outputs):
            task.tokens.append(token)
            self.answers[task] -= 1
            done = self.answers[task] <= 0 or len(task.tokens) > self.limits.context_tokens
            if done or index >= part.draft or draft[index] != token:
                break
            accepted += 1
        self.scheduler.advance(part, accepted)
        if done:
            self.scheduler.finish(task)

    def _step_alone(self, slot: Slot, *, aborted: bool) -> Step:
        """One token of the only request, as the runner evaluates it."""
        task = slot.task
        step = Step(task.adapters, task.tokens[-1:], [slot.evaluated], [slot.sequence], [True])
        step.parts.append(Part(slot, 0, slot.evaluated, 1, 0, 0, 1))
        self.steps.append(step)
        outputs = self.cache.evaluate(step)
        if aborted:
            self.scheduler.truncate(slot)
        else:
            self.scheduler.append(slot)
            task.tokens += outputs
            self.answers[task] -= 1
            if self.answers[task] <= 0 or len(task.tokens) > self.limits.context_tokens:
                self.scheduler.finish(task)
        self._check_counts()
        return step

    def _score(self, part: Part, outputs: list[int]) -> None:
        task, first = part.slot.task, part.start + part.count - part.rows
        for index, token in enumerate(outputs):
            self.scored.setdefault(task, {})[first + index] = token
        self.scheduler.advance(part, 0)
        if part.slot.evaluated == len(task.tokens):
            self.scheduler.finish(task)

    def _half_evaluate(self, step: Step) -> None:
        """The evaluation is aborted: some of the tokens are in the cache."""
        half = len(step.tokens) // 2
        some = Step(
            step.adapters, step.tokens[:half], step.positions[:half], step.sequences[:half], step.is_output[:half]
        )
        self.cache.evaluate(some)
        self.scheduler.roll_back(step)
        self._check_counts()

    def _check_counts(self) -> None:
        cells = self.scheduler.cells
        assert cells.capacity - cells.free == len(self.cache.cells), "the count of cells is wrong"
        running = {slot.sequence for slot in self.scheduler.running}
        evictable = sum(not (owners & running) for _, _, owners in self.cache.cells)
        assert cells.evictable == evictable, "the count of evictable cells is wrong"


def random_prompt(random_state: random.Random, length: int) -> list[int]:
    return [random_state.randrange(VOCABULARY) for _ in range(length)]
