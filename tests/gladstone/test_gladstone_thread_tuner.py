"""The thread count follows the measured speed: simulated machines with a simulated clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gladstone.machine.host import Cores
from gladstone.machine.thread_tuner import (
    MOST_SHARE,
    QUIET_SHARE,
    TRIAL_S,
    UNKNOWN_LOSS,
    InitialThreads,
    KeepInitial,
    ThreadTuner,
    thread_counts,
)

QUIET = {1: 0.0208, 2: 0.0133}  # seconds a token, as measured on two cores
BESIDE = {1: 0.0208, 2: 0.0303}


@dataclass
class Machine:
    """Evaluates batches at `cost(threads)` seconds; other work shows in the costs, and in `others` if it is seen."""

    counts: tuple[int, ...]
    first: int
    cost: Callable[[int], float]
    others: float = 0.0
    noise: Callable[[], float] = lambda: 1.0
    keep_initial: KeepInitial = "quiet"
    places_threads: bool = False
    now_s: float = 0.0
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread_tuner = ThreadTuner(
            self.counts,
            InitialThreads(self.first, self.first, self.keep_initial),
            lambda: self.others,
            places_threads=self.places_threads,
        )

    def run(self, seconds: float, tokens: int = 1, *, divides: bool = False) -> float:
        """Evaluate for so long; seconds a batch."""
        begin_s, batches = self.now_s, 0
        while self.now_s - begin_s < seconds:
            threads = self.thread_tuner.threads(tokens, divides=divides)
            spent_s = self.cost(threads) * self.noise()
            self.now_s += spent_s
            self.used.append(threads)
            self.thread_tuner.record(tokens, spent_s, self.now_s)
            batches += 1
        return (self.now_s - begin_s) / batches


def test_a_quiet_machine_keeps_its_speed() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    assert machine.run(60) <= QUIET[2] * (1 + MOST_SHARE)
    assert machine.run(600) <= QUIET[2] * (1 + 2 * QUIET_SHARE)
    assert 1 in machine.used  # and yet it is looked at now and then


def test_a_short_answer_on_a_quiet_machine_meets_no_trial() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    machine.run(3)
    assert set(machine.used) == {2}


def test_fewer_threads_are_used_beside_other_work_and_more_again_after_it() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    machine.run(5)
    machine.cost, machine.others = BESIDE.__getitem__, 1.0
    machine.run(0.3)
    assert machine.run(20) <= BESIDE[1] * 1.03
    machine.cost, machine.others = QUIET.__getitem__, 0.0
    machine.run(0.3)
    assert machine.run(20) <= QUIET[2] * 1.02


def test_a_system_that_does_not_tell_of_other_work_finds_out_by_the_time_it_takes() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    machine.run(5)
    machine.cost = BESIDE.__getitem__
    machine.run(0.5)
    assert machine.run(20) <= BESIDE[1] * 1.03
    machine.cost = QUIET.__getitem__
    machine.run(20)
    assert machine.run(20) <= QUIET[2] * 1.02


def test_a_number_that_was_chosen_in_a_busy_moment_is_found_out_at_once() -> None:
    machine = Machine((1, 2), 1, QUIET.__getitem__)
    assert machine.thread_tuner.better_count is None
    machine.run(0.4)
    assert machine.used[-1] == machine.thread_tuner.better_count == 2


def test_what_is_found_beside_other_work_says_nothing_of_the_quiet_machine() -> None:
    machine = Machine((1, 2), 2, BESIDE.__getitem__, others=1.0)
    machine.run(2)
    assert (machine.used[-1], machine.thread_tuner.better_count) == (1, None)


def test_an_evaluation_that_stands_still_is_left_after_one_step() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    machine.run(5)
    machine.cost = lambda threads: 4.0 if threads == 2 else 0.03
    machine.run(4.1)
    machine.run(1)
    assert machine.used[-1] == 1
    machine.used.clear()
    machine.run(200)  # and is hardly tried again while it lasts
    assert machine.used.count(2) <= 2


@settings(max_examples=25)
@example(1.0, 1.0, 29, 0, 0.0, 0)  # from 15 threads to 32, although 16 are hardly faster than 15
@given(
    st.floats(5e-3, 5.0),
    st.floats(0.2, 1.0),
    st.integers(1, 32),
    st.integers(0, 31),
    st.floats(0.0, 0.1),
    st.integers(0, 2**32),
)
def test_the_best_number_is_found_and_trials_stay_cheap(
    token_s: float, parallel: float, best: int, first: int, spread: float, seed: int
) -> None:
    counts = thread_counts(Cores(32, 32, 16))
    chance = random.Random(seed)

    def cost(threads: int) -> float:  # Amdahl's law up to the best number, each thread beyond it in the others' way
        return 5e-3 + token_s * (1 - parallel + parallel / min(threads, best)) * (1 + 0.1 * max(0, threads - best))

    begin = counts[first % len(counts)]
    machine = Machine(counts, begin, cost, noise=lambda: 1 + spread * chance.random())
    whole_s = machine.run(max(40.0, 2500 * cost(begin)))
    fastest_s = min(cost(count) for count in counts)
    late = machine.used[-50:]
    # a neighbour that is less than 7 % faster is not worth a change
    assert sorted(map(cost, late))[len(late) // 2] <= fastest_s * (1 + spread) * 1.35
    choice = machine.thread_tuner._choosers[0]
    trial_s = 2 * max(TRIAL_S, *map(cost, counts))
    assert choice.lost_s <= MOST_SHARE * choice.total_s + trial_s
    assert whole_s <= cost(begin) * (1 + spread) * (1 + MOST_SHARE) + trial_s / 50


def test_kinds_of_batches_learn_for_themselves() -> None:
    machine = Machine((1, 2), 2, lambda threads: 0.02 / threads)
    machine.run(2, tokens=512)
    machine.cost, machine.others = BESIDE.__getitem__, 1.0
    machine.run(2)
    machine.cost = lambda threads: 0.02 / threads
    machine.used.clear()
    machine.run(5, tokens=8)
    assert machine.used.count(2) > machine.used.count(1)


def test_where_other_work_begins_and_ends_the_first_evaluation_is_as_it_should_be() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    for others, cost, best in ((0.0, QUIET, 2), (1.0, BESIDE, 1), (0.0, QUIET, 2), (1.0, BESIDE, 1)):
        machine.others, machine.cost = others, cost.__getitem__
        machine.used.clear()
        machine.run(1)
        assert machine.used[0] == best
        assert machine.used.count(best) >= 0.9 * len(machine.used)


def test_a_wrong_guess_beside_other_work_is_corrected_and_remembered() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__, others=1.0)  # the other work gives way
    machine.run(20)
    assert machine.used[0] == 1
    for others in (0.0, 1.0):
        machine.others = others
        machine.used.clear()
        machine.run(1)
        assert machine.used[0] == 2


def test_little_other_work_is_no_reason_to_guess() -> None:
    machine = Machine((1, 2), 2, BESIDE.__getitem__, others=0.3)
    machine.run(2)
    assert (machine.used[0], machine.used[-1]) == (2, 1)


def test_prompts_are_read_by_spread_threads_beside_other_work_alone() -> None:
    machine = Machine((1, 2), 2, lambda threads: {1: 1.3, 2: 0.7, 4: 0.8}[threads], places_threads=True)
    machine.run(60, tokens=384)
    assert 4 not in machine.used
    machine.others, machine.cost = 1.0, lambda threads: {1: 1.3, 2: 1.3, 4: 1.1}[threads]
    machine.used.clear()
    machine.run(60, tokens=384)
    assert machine.used[0] == 4
    assert machine.used.count(4) >= 0.8 * len(machine.used)
    machine.others = 0.0
    machine.used.clear()
    machine.run(60, tokens=384)
    assert 4 not in machine.used


def test_where_spread_threads_are_slower_fewer_are_used() -> None:
    machine = Machine((1, 2), 2, lambda threads: {1: 0.3, 2: 0.4, 4: 0.5}[threads], others=1.0, places_threads=True)
    machine.run(200, tokens=384)
    assert machine.used[-1] == 1
    machine.run(10)
    assert max(machine.used[-10:]) <= 2  # single tokens are never spread


def test_where_the_number_changes_the_result_only_other_work_is_a_reason() -> None:
    machine = Machine((1, 2), 2, QUIET.__getitem__)
    machine.run(400, divides=True)
    assert set(machine.used) == {2}
    machine.cost, machine.others = BESIDE.__getitem__, 1.0
    machine.run(1, divides=True)
    assert machine.used[-1] == 1
    machine.cost, machine.others = QUIET.__getitem__, 0.0
    machine.run(0.1, divides=True)
    assert machine.used[-1] == 2


def test_the_number_can_be_held_whatever_else_runs() -> None:
    machine = Machine((1, 2), 2, BESIDE.__getitem__, others=1.0, keep_initial="always")
    machine.run(20, divides=True)
    assert set(machine.used) == {2}
    machine.run(2)
    assert machine.used[-1] == 1  # where it changes nothing it is free


@given(st.integers(1, 256), st.integers(1, 256), st.floats(0.1, 300))
def test_counts_are_possible_and_few(physical: int, more: int, quota: float) -> None:
    cores = Cores(2 * physical, physical + min(more, physical), physical, quota)
    found = thread_counts(cores)
    assert found == tuple(sorted(set(found)))
    assert (found[0], found[-1]) == (1, cores.usable)
    assert len(found) <= 16


def test_what_a_trial_may_lose_is_known_before() -> None:
    assert 0 < QUIET_SHARE < MOST_SHARE < UNKNOWN_LOSS
