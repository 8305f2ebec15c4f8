"""A model whose next token depends on every token of its sequence, over a cache that says no to every mistake."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.scheduling.scheduler import Scheduler
from runtime.scheduling.sequences import Limits, Part, Step, Task

VOCABULARY = 97


def next_token(tokens: list[int]) -> int:
    """What this model writes after these tokens."""
    value = 17
    for token in tokens:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCABULARY


def alone(prompt: list[int], count: int) -> list[int]:
    """The answer that the prompt gets when nobody else is there."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class SimulatedCache:
    """Cells with a position, a token and the sequences that see them, as llama.cpp keeps them."""

    def __init__(self, capacity: int, *, can_cut: bool = True) -> None:
        self.capacity, self.can_cut = capacity, can_cut
        self.cells: list[tuple[int, int, set[int]]] = []
        self.most = 0
        self.read = 0

    def share(self, source: int, target: int, count: int) -> None:
        assert not self.sequence(target), "the target of a copy holds something"
        for position, _token, owners in self.cells:
            if source in owners and position < count:
                owners.add(target)
        assert len(self.sequence(target)) == count

    def cut(self, sequence: int, length: int) -> int:
        if not self.can_cut and length < len(self.sequence(sequence)):
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
        """The next token after each token of the batch whose output is wanted."""
        out = []
        for token, position, sequence, wanted in zip(
            step.tokens, step.positions, step.sequences, step.wanted, strict=True
        ):
            assert position == len(self.sequence(sequence)), "a token at the wrong position"
            self.cells.append((position, token, {sequence}))
            if wanted:
                out.append(next_token(self.sequence(sequence)))
        self.read += len(step.tokens)
        self.most = max(self.most, len(self.cells))
        assert len(self.cells) <= self.capacity, "more cells than there are"
        return out


@dataclass
class Simulation:
    """A scheduler at work, and what it did."""

    limits: Limits
    guess: Callable[[Task], list[int]] = lambda _task: []
    steps: list[Step] = field(default_factory=list)
    answers: dict[Task, int] = field(default_factory=dict)  # tokens wanted of each
    scored: dict[Task, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = SimulatedCache(self.limits.cells, can_cut=self.limits.can_cut)
        self.scheduler = Scheduler(self.cache, self.limits)

    def ask(self, prompt: list[int], count: int, **options: object) -> Task:
        task = Task(list(prompt), **options)  # type: ignore[arg-type]
        self.answers[task] = count
        self.scheduler.submit(task)
        return task

    def answer(self, task: Task, prompt: list[int]) -> list[int]:
        return task.tokens[len(prompt) :]

    def step(self, *, broken_off: bool = False) -> Step | None:
        for task in self.scheduler.running:
            if task.pending == 1 and task.outputs_from is None:
                task.drafts = self.guess(task)
        alone = self.scheduler.writes_alone()
        if alone is not None:
            return self._step_alone(alone, broken_off=broken_off)
        step = self.scheduler.plan()
        if step is None:
            return None
        self.steps.append(step)
        if broken_off:
            self._half_evaluate(step)
            return step
        outputs = self.cache.evaluate(step)
        for part in step.parts:
            self._take(part.task, part, outputs[part.first_row : part.first_row + part.rows])
        self._check_counts()
        return step

    def run(self, most: int = 100_000) -> None:
        for _ in range(most):
            if self.scheduler.idle:
                return
            assert self.step() is not None, "there are tasks, and nothing is done"
        raise AssertionError("it does not end")

    def _take(self, task: Task, part: object, outputs: list[int]) -> None:
        if task.outputs_from is not None:
            self._score(task, part, outputs)
            return
        kept = 0
        done = False
        for index, token in enumerate(outputs):
            task.tokens.append(token)
            self.answers[task] -= 1
            done = self.answers[task] <= 0 or len(task.tokens) > self.limits.context_tokens
            if done or index >= part.drafts or task.drafts[index] != token:  # type: ignore[attr-defined]
                break
            kept += 1
        self.scheduler.advance(part, kept)  # type: ignore[arg-type]
        if done:
            self.scheduler.finish(task)

    def _step_alone(self, task: Task, *, broken_off: bool) -> Step:
        """As the runner does it for somebody who writes alone."""
        assert task.sequence is not None
        step = Step(task.adapters, task.tokens[-1:], [task.evaluated], [task.sequence], [True])
        step.parts.append(Part(task, 0, task.evaluated, 1, 0, 0, 1))
        self.steps.append(step)
        outputs = self.cache.evaluate(step)
        if broken_off:
            self.scheduler.cut(task)
        else:
            self.scheduler.append(task)
            task.tokens += outputs
            self.answers[task] -= 1
            if self.answers[task] <= 0 or len(task.tokens) > self.limits.context_tokens:
                self.scheduler.finish(task)
        self._check_counts()
        return step

    def _score(self, task: Task, part: object, outputs: list[int]) -> None:
        first = part.start + part.count - part.rows  # type: ignore[attr-defined]
        for index, token in enumerate(outputs):
            self.scored.setdefault(task, {})[first + index] = token
        self.scheduler.advance(part, 0)  # type: ignore[arg-type]
        if task.evaluated == len(task.tokens):
            self.scheduler.finish(task)

    def _half_evaluate(self, step: Step) -> None:
        """The evaluation is broken off: some of the tokens are in the cache."""
        half = len(step.tokens) // 2
        some = Step(step.adapters, step.tokens[:half], step.positions[:half], step.sequences[:half], step.wanted[:half])
        self.cache.evaluate(some)
        self.scheduler.undo(step)
        self._check_counts()

    def _check_counts(self) -> None:
        cells = self.scheduler.cells
        assert cells.capacity - cells.free == len(self.cache.cells), "the count of cells is wrong"
        running = {task.sequence for task in self.scheduler.running}
        loose = sum(not (owners & running) for _, _, owners in self.cache.cells)
        assert cells.loose == loose, "the count of loose cells is wrong"


def random_prompt(random_state: random.Random, length: int) -> list[int]:
    return [random_state.randrange(VOCABULARY) for _ in range(length)]
