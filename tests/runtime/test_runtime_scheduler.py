import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.errors import QueueFullError
from runtime.sampling.common_prefix import common_prefix_length
from runtime.scheduling.kv_cells import Cells
from runtime.scheduling.scheduler import OVERTAKEN_PER_PRIORITY, TURN_STEPS, Scheduler
from runtime.scheduling.sequences import Limits, Task
from tests.runtime.simulated_model import SimulatedCache, Simulation, alone, next_token, random_prompt

ROOMY = Limits(cells=4096, context_tokens=512, slots=4, sequences=8, batch_tokens=64, prefill_chunk_tokens=16)


@st.composite
def loads(draw: Any) -> tuple[Limits, list[tuple[list[int], int, int, int, int]]]:
    """Sizes, and requests: prompt, tokens wanted, priority, set of adapters, step of arrival."""
    slots = draw(st.integers(1, 5))
    context = draw(st.integers(8, 40))
    limits = Limits(
        cells=draw(st.integers(context, 4 * context)),
        context_tokens=context,
        slots=slots,
        sequences=slots + draw(st.integers(0, 3)),
        batch_tokens=draw(st.integers(max(2, slots), 16)),
        prefill_chunk_tokens=draw(st.integers(1, 8)),
    )
    beginnings = [list(range(draw(st.integers(0, context - 2)))) for _ in range(2)]
    requests = []
    for _ in range(draw(st.integers(1, 10))):
        beginning = draw(st.sampled_from(beginnings))
        rest = draw(st.lists(st.integers(0, 96), min_size=1, max_size=max(1, context - 1 - len(beginning))))
        prompt = (beginning + rest)[: context - 1]
        requests.append(
            (
                prompt,
                draw(st.integers(1, 12)),
                draw(st.integers(0, 3)),
                draw(st.integers(0, 2)),
                draw(st.integers(0, 15)),
            )
        )
    return limits, requests


def check_load(limits: Limits, requests: list[Any], **options: Any) -> Simulation:
    simulation = Simulation(limits, **options)
    tasks: list[tuple[Task, list[int], int]] = []
    for now in range(200_000):
        for prompt, count, priority, adapters, arrival in requests:
            if arrival == now:
                tasks.append(
                    (simulation.ask(prompt, count, priority=priority, adapters=(float(adapters),)), prompt, count)
                )
        if now > 15 and simulation.scheduler.idle:
            break
        simulation.step()
    assert simulation.scheduler.idle
    for task, prompt, count in tasks:
        written = min(count, limits.context_tokens + 1 - len(prompt))
        assert simulation.answer(task, prompt) == alone(prompt, written), "tokens were lost, or sequences mixed"
    return simulation


@settings(max_examples=300, deadline=None)
@given(loads())
def test_each_request_gets_the_answer_that_it_gets_alone_and_cells_are_never_over_promised(load: Any) -> None:
    check_load(*load)


@settings(max_examples=100, deadline=None)
@given(loads(), st.randoms(use_true_random=False))
def test_draft_tokens_right_or_wrong_change_no_answer(load: Any, chance: random.Random) -> None:
    def draft(task: Task) -> list[int]:
        tokens: list[int] = []
        for _ in range(chance.randrange(5)):
            right = next_token([*task.tokens, *tokens])
            tokens.append(right if chance.random() < 0.7 else chance.randrange(97))
        return tokens

    check_load(*load, draft=draft)


@settings(max_examples=100, deadline=None)
@given(loads(), st.randoms(use_true_random=False))
def test_cancelling_and_aborting_change_no_other_answer(load: Any, chance: random.Random) -> None:
    limits, requests = load
    simulation = Simulation(limits)
    tasks = [
        (simulation.ask(prompt, count, priority=priority), prompt, count) for prompt, count, priority, _, _ in requests
    ]
    cancelled = set()
    for _ in range(200_000):
        if simulation.scheduler.idle:
            break
        if chance.random() < 0.05:
            task = chance.choice(tasks)[0]
            if not task.finished:
                cancelled.add(task)
                simulation.scheduler.finish(task)
        simulation.step(aborted=chance.random() < 0.1)
    for task, prompt, count in tasks:
        whole = alone(prompt, min(count, limits.context_tokens + 1 - len(prompt)))
        written = simulation.answer(task, prompt)
        assert written == (whole[: len(written)] if task in cancelled else whole)


@settings(max_examples=50, deadline=None)
@given(loads())
def test_a_state_that_cannot_be_truncated_gives_the_same_answers(load: Any) -> None:
    limits, requests = load
    check_load(replace(limits, can_truncate=False), requests)


def test_a_request_that_decodes_never_waits_for_a_long_prefill() -> None:
    simulation = Simulation(ROOMY)
    decoding = simulation.ask([1, 2, 3], 100)
    simulation.step()
    simulation.ask(random_prompt(random.Random(0), 400), 5)
    while simulation.answers[decoding] > 0:
        step = simulation.step()
        assert step is not None
        assert decoding in [part.slot.task for part in step.parts], "it was left out of a step"
        assert len(step.tokens) <= ROOMY.slots + ROOMY.prefill_chunk_tokens


def test_a_prompt_alone_takes_whole_batches() -> None:
    simulation = Simulation(ROOMY)
    simulation.ask(random_prompt(random.Random(0), 200), 1)
    simulation.run()
    assert [len(step.tokens) for step in simulation.steps] == [64, 64, 64, 8]


def test_four_questions_over_one_long_prefix_evaluate_it_once() -> None:
    simulation = Simulation(Limits(cells=8192, context_tokens=2048, slots=4, sequences=8))
    prefix = random_prompt(random.Random(1), 1000)
    for question in range(4):
        simulation.ask([*prefix, question, 5, 6], 8)
    simulation.run()
    assert simulation.cache.read == 1000 + 4 * 3 + 4 * 7


def test_a_conversation_that_comes_back_evaluates_only_what_is_new() -> None:
    simulation = Simulation(ROOMY)
    prompt = random_prompt(random.Random(2), 100)
    first = simulation.ask(prompt, 10)
    simulation.run()
    simulation.ask([1, 2, 3], 4)  # another request in between
    simulation.run()
    before = simulation.cache.read
    again = simulation.ask([*first.tokens, 7, 8, 9], 5)
    simulation.run()
    assert again.cached == len(prompt) + 9
    assert simulation.cache.read - before == 1 + 3 + 4  # its last token, what was typed, and the answer but its last


def test_the_same_question_again_costs_one_token() -> None:
    simulation = Simulation(ROOMY)
    prompt = random_prompt(random.Random(3), 50)
    simulation.ask(prompt, 1)
    simulation.run()
    simulation.ask(prompt, 1)
    simulation.run()
    assert simulation.cache.read == 51


def test_higher_priorities_run_first_and_starve_no_other() -> None:
    simulation = Simulation(Limits(cells=64, context_tokens=32, slots=1, sequences=2, batch_tokens=32))
    low = simulation.ask([1, 2], 2)
    high = [simulation.ask([3, number], 2, priority=5) for number in range(3)]
    simulation.run()
    assert [step.parts[0].slot.task for step in simulation.steps][:6:2] == high
    simulation = Simulation(simulation.limits)
    low = simulation.ask([1, 2], 2)
    for number in range(10_000):  # an endless stream of more important ones
        simulation.ask([3, number % 97], 2, priority=5)
        while len(simulation.scheduler.waiting) > 2:
            simulation.step()
        if low.finished:
            break
    assert number <= 6 * OVERTAKEN_PER_PRIORITY


def test_the_last_to_come_is_preempted_and_loses_no_token() -> None:
    limits = Limits(cells=40, context_tokens=32, slots=3, sequences=3, batch_tokens=16, prefill_chunk_tokens=8)
    simulation = Simulation(limits)
    prompts = [[number, number + 1, 5] for number in range(3)]
    tasks = [simulation.ask(prompt, 25) for prompt in prompts]
    preempted = set()
    while not simulation.scheduler.idle:
        simulation.step()
        preempted |= {task for task in simulation.scheduler.waiting if task in tasks and len(task.tokens) > 3}
    assert tasks[0] not in preempted
    assert preempted
    assert [simulation.answer(task, prompt) for task, prompt in zip(tasks, prompts, strict=True)] == [
        alone(prompt, 25) for prompt in prompts
    ]
    assert simulation.cache.peak <= 40


def test_sets_of_adapters_never_share_a_batch_or_a_prefix_and_take_turns() -> None:
    simulation = Simulation(ROOMY)
    prompt = random_prompt(random.Random(4), 60)
    tasks = {scale: simulation.ask(prompt, 60, adapters=(scale,)) for scale in (0.0, 1.0)}
    simulation.run()
    for step in simulation.steps:
        assert {part.slot.task.adapters for part in step.parts} == {step.adapters}
    assert [task.cached for task in tasks.values()] == [0, 0]
    turns = [step.adapters for step in simulation.steps]
    assert all(len(set(turns[at : at + TURN_STEPS + 1])) == 2 for at in range(0, 60, TURN_STEPS))


def test_a_group_starts_from_an_empty_cache_and_leaves_nothing() -> None:
    simulation = Simulation(Limits(cells=512, context_tokens=128, slots=4, sequences=8, outputs=4))
    prefix = random_prompt(random.Random(5), 40)
    simulation.ask(prefix, 3)
    simulation.run()
    group, before = object(), simulation.cache.read
    scored = [simulation.ask([*prefix, n, n + 1, n + 2], 0, outputs_from=39, group=group) for n in range(3)]
    simulation.run()
    assert [task.cached for task in scored] == [0, 39, 39]
    assert simulation.cache.read - before == 40 + 3 + 2 * 4
    for task in scored:
        assert simulation.scored[task] == {at: next_token(task.tokens[: at + 1]) for at in range(39, 43)}
    assert simulation.cache.cells == []
    assert all(step.outputs <= 4 for step in simulation.steps[3:])


def test_the_queue_is_bounded_and_what_never_fits_is_refused() -> None:
    scheduler = Scheduler(SimulatedCache(32), Limits(cells=32, context_tokens=16, queue=2))
    for _ in range(2):
        scheduler.submit(Task([1]))
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        scheduler.submit(Task([1]))
    for tokens in ([], [0] * 17):
        with pytest.raises(ValueError, match="do not fit a context of 16"):
            scheduler.submit(Task(tokens))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"slots": 9}, "need as many"), ({"context_tokens": 33}, "not fit"), ({"batch_tokens": 1, "slots": 2}, "need as")],
)
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(SimulatedCache(32), replace(Limits(cells=32, context_tokens=16), **wrong))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.integers(0, 20))
@example([1, 2, 3], [1, 2, 3, 4], 9)
def test_the_common_prefix_length_is_that_of_a_loop(first: list[int], second: list[int], most: int) -> None:
    count = 0
    while count < min(most, len(first), len(second)) and first[count] == second[count]:
        count += 1
    assert common_prefix_length(first, second, most) == count


def test_more_cells_than_are_free_cannot_be_taken() -> None:
    cells = Cells(4)
    cells.append(0, 3)
    with pytest.raises(ValueError, match="2 cells requested, 1 are free"):
        cells.append(1, 2)
    cells.share(0, 1, 2)
    with pytest.raises(ValueError, match="holds cells of its own"):
        cells.share(0, 1, 1)
    cells.truncate(0, 0)
    assert (cells.free, cells.evictable, cells.length(1)) == (2, 2, 2)
