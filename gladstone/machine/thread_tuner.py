"""Choose the number of threads while computing. Pure: the caller measures each evaluation and passes its time in.

Beside other work fewer threads are faster, since all of them wait for the one whose CPU another program occupies; on an
idle machine more are. When other work begins, the first guess is one thread less for each CPU that it occupies, and for
prompts an uneven placement of the threads (`gladstone.machine.thread_placement`); when it ends, the count that was best
before. From there a neighbouring count is tried for 50 ms now and then, and the faster one is kept. The cost of these
trials is counted and bounded: 0.5 % of the time as long as nothing changes, 2 % at most.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gladstone.machine.host import Cores, read_cores
from gladstone.machine.openmp import occupied_cpus
from gladstone.machine.other_work import NOTICEABLE
from gladstone.machine.thread_placement import can_place_threads, placed_thread_count

TRIAL_S = 0.05  # length of a trial: a dozen of the scheduler's time slices
WINDOW_S = 0.1  # of evaluations that a trial is compared with
BETTER = 0.93  # a change must take less than this share of the time
CHANGED = 1.25  # if the time has grown or shrunk by this factor since the choice, conditions have changed
# shares of the time that trials may cost: with no reason, beside other work, and after a change
QUIET_SHARE, BUSY_SHARE, MOST_SHARE = 0.005, 0.01, 0.02
UNKNOWN_LOSS, LEAST_LOSS = 0.5, 0.05  # assumed lost share of a trial: before the first one, and at least
PAUSE_S = 2.0  # after such a pause earlier times do not count
FEW_TOKENS = 16
READ_TOKENS = 4  # reading the weights takes about as long as computing so many tokens
ONE, FEW, MANY = range(3)
KeepInitial = Literal["quiet", "always", "never"]


def thread_counts(cores: Cores) -> tuple[int, ...]:
    """Thread counts that are worth trying, in ascending order."""
    most, physical = cores.usable, min(cores.physical, cores.usable)
    counts = {most, physical, physical - 1, physical * 3 // 4, physical // 2, physical // 4}
    counts |= {1 << power for power in range(most.bit_length()) if 1 << power < most}
    return tuple(sorted(count for count in counts if count >= 1))


class Timings:
    """Evaluations: their work in tokens and the seconds that they took."""

    def __init__(self) -> None:
        self._evaluations: deque[tuple[float, float]] = deque()
        self.work = self.seconds = 0.0

    def add(self, work: float, seconds: float) -> None:
        self._evaluations.append((work, seconds))
        self.work += work
        self.seconds += seconds

    def keep_last(self, seconds: float) -> None:
        """Drop evaluations before the last `seconds`."""
        while self._evaluations and self.seconds - self._evaluations[0][1] >= seconds:
            work, spent_s = self._evaluations.popleft()
            self.work -= work
            self.seconds -= spent_s

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token."""
        return self.seconds / self.work

    @property
    def longest_s(self) -> float:
        """Seconds of the longest evaluation."""
        return max((seconds for _, seconds in self._evaluations), default=0.0)


class CountChooser:
    """Chooses the thread count for evaluations of one kind."""

    def __init__(self, counts: Sequence[int], first: int, *, many: bool = False, places_threads: bool = False) -> None:
        """`many`: for batches of many tokens.

        `places_threads`: beside other work, more threads than CPUs can be placed unevenly.
        """
        self._quiet_counts = self._counts = tuple(sorted({*counts, first}))
        self._many, self._places_threads = many, places_threads
        self._index = self._counts.index(first)
        self._tried: int | None = None
        self._trial, self._window = Timings(), Timings()
        self._lost_shares: dict[int, float] = {}
        self._chosen_cost: float | None = None
        self._down, self._busy = False, False
        self._best: dict[bool, int] = {}  # the best count beside other work (True) and without (False)
        # `first` may have been chosen in a busy moment: test it at once
        self._urgent = self._index < len(self._counts) - 1
        self.total_s = self.lost_s = 0.0  # of all evaluations; and the time that trials took beyond the current choice

    @property
    def count(self) -> int:
        """Threads for the next evaluation."""
        return self._counts[self._index if self._tried is None else self._tried]

    @property
    def chosen(self) -> int:
        """The best count so far."""
        return self._counts[self._index]

    @property
    def best_when_idle(self) -> int:
        """The best count so far without other work on the machine."""
        return self._best[False] if self._busy else self.chosen

    def set_other_work(self, others: float) -> None:
        """Take in that other work occupies `others` CPUs; if it begins or ends, switch to the best count for that."""
        busy = others >= NOTICEABLE
        if busy == self._busy:
            return
        self.interrupt()
        self._best[self._busy] = before = self.chosen
        extra = placed_thread_count(self._quiet_counts[-1], others) if busy and self._places_threads else None
        self._counts = self._quiet_counts if extra is None else (*self._quiet_counts, extra)
        best = self._best.get(busy) or self._guess(others, before, extra)
        self._index = max(index for index, count in enumerate(self._counts) if count <= max(best, self._counts[0]))
        self._busy, self._down, self._chosen_cost = busy, busy and extra is None, None
        self._lost_shares.clear()
        # without experience, or with a count that may come from a busy moment, test at once
        self._urgent = self.chosen == before if busy else self._index < len(self._counts) - 1

    def _guess(self, others: float, before: int, extra: int | None) -> int:
        """First count beside other work: one thread less per occupied CPU, or the uneven placement."""
        most, taken = self._quiet_counts[-1], round(others)
        if extra is not None and taken:
            return extra
        if taken < most:
            return min(before, most - taken)
        return before if self._many else max(1, before // 2)

    def record(self, work: float, seconds: float) -> None:
        """Record an evaluation with `count` threads: `work` in tokens."""
        self.total_s += seconds
        if self._tried is not None:
            self._trial.add(work, seconds)
            if self._trial.seconds >= TRIAL_S:
                self._finish_trial()
            return
        self._window.add(work, seconds)
        self._window.keep_last(WINDOW_S)
        if len(self._counts) > 1 and self._window.seconds >= TRIAL_S:
            self._consider()

    def interrupt(self) -> None:
        """Discard measurements: the next evaluations are not comparable with the earlier ones."""
        if self._tried is not None:
            self._end_trial()
        self._window = Timings()

    def _consider(self) -> None:
        """Begin a trial if one is due."""
        cost = self._window.seconds_per_token
        before, self._chosen_cost = self._chosen_cost or cost, self._chosen_cost or cost
        if not before / CHANGED <= cost <= before * CHANGED:
            self._urgent, self._down, self._chosen_cost = True, cost > before, cost
        index = self._neighbour()
        if self._urgent and self.lost_s <= MOST_SHARE * self.total_s:
            self._tried = index
        else:
            loss_s = self._lost_shares.get(index, UNKNOWN_LOSS) * max(TRIAL_S, self._window.longest_s)
            share = BUSY_SHARE if self._busy else QUIET_SHARE
            self._tried = index if self.lost_s + loss_s <= share * self.total_s else None

    def _neighbour(self) -> int:
        """The index to try next; turns round at the smallest and the largest count."""
        if not 0 <= self._index + (-1 if self._down else 1) < len(self._counts):
            self._down = not self._down
        if self._down:
            return self._index - 1
        # even with perfect scaling a count that is hardly larger, as 16 after 15, cannot be clearly faster
        larger = range(self._index + 1, len(self._counts))
        return next((index for index in larger if self.chosen < BETTER * self._counts[index]), larger[-1])

    def _finish_trial(self) -> None:
        """End the trial and keep its count if it is clearly faster."""
        trial, index = self._trial, self._tried
        cost = self._window.seconds_per_token
        self._urgent = False
        self._end_trial()
        if index is not None and trial.seconds_per_token < BETTER * cost:
            self._index, self._window, self._chosen_cost = index, trial, trial.seconds_per_token
            self._urgent = 0 < index < len(self._counts) - 1  # continue in the same direction
        else:
            self._chosen_cost = cost
            self._down = not self._down

    def _end_trial(self) -> None:
        trial, index = self._trial, self._tried
        if index is not None and trial.work:
            lost_s = max(0.0, trial.seconds - trial.work * self._window.seconds_per_token)
            self.lost_s += lost_s
            self._lost_shares[index] = max(LEAST_LOSS, lost_s / trial.seconds)
        self._tried, self._trial = None, Timings()


@dataclass(frozen=True)
class InitialThreads:
    """The initial thread counts, for single tokens and for batches.

    `keep_initial` says when single tokens keep the initial count although another may be faster, if the count changes
    the last bits of the result: "quiet" (unless other work slows it down), "always", or "never".
    """

    decode: int
    prefill: int
    keep_initial: KeepInitial = "quiet"


class ThreadTuner:
    """Chooses the thread count for each batch: of one token, a few (several requests at once), or many (prompts).

    Not thread-safe.
    """

    def __init__(
        self, counts: Sequence[int], first: InitialThreads, others: Callable[[], float], *, places_threads: bool = False
    ) -> None:
        """`others` returns the number of CPUs that other work occupies.

        `places_threads`: more threads than CPUs can be placed unevenly, as `gladstone.machine.thread_placement` does.
        """
        self._first = first
        self._most = max(*counts, first.decode, first.prefill)
        many = CountChooser(counts, first.prefill, many=True, places_threads=places_threads)
        self._choosers = (CountChooser(counts, first.decode), CountChooser(counts, first.prefill), many)
        self._others = others
        self._kind = MANY
        self._keeps_initial = False
        self._last_s = 0.0

    def threads(self, tokens: int, *, divides: bool = False) -> int:
        """The thread count for a batch of `tokens`; `divides`: the count changes the last bits of the result."""
        others = self._others()
        kind = ONE if tokens == 1 else FEW if tokens <= FEW_TOKENS else MANY
        if kind != self._kind:
            for short in (ONE, FEW):  # the next such batch is mostly at another position of a text
                self._choosers[short].interrupt()
            self._kind = kind
        keep_initial = self._first.keep_initial
        self._keeps_initial = divides and (
            keep_initial == "always" or (keep_initial == "quiet" and others < NOTICEABLE)
        )
        if self._keeps_initial:
            return self._first.decode
        self._choosers[kind].set_other_work(others)
        return self._choosers[kind].count

    def is_placement(self, threads: int) -> bool:
        """Whether this count is an uneven placement, with more threads than CPUs."""
        return threads > self._most

    def record(self, tokens: int, seconds: float, now_s: float) -> None:
        """Record that the evaluation after the last call of `threads` took `seconds` and ended at `now_s`."""
        if now_s - self._last_s > seconds + PAUSE_S:
            for chooser in self._choosers:
                chooser.interrupt()
        self._last_s = now_s
        if not self._keeps_initial:
            self._choosers[self._kind].record(tokens + READ_TOKENS, seconds)

    @property
    def better_count(self) -> int | None:
        """A count for single tokens that is better than the initial one on an idle machine; None if there is none."""
        quiet = self._choosers[ONE].best_when_idle
        return quiet if quiet != self._first.decode else None


def make_thread_tuner(first: InitialThreads | None = None) -> ThreadTuner:
    """Make the thread tuner for this machine; without `first` it begins with all CPUs."""
    cores = read_cores()
    first = first or InitialThreads(cores.usable, cores.usable, keep_initial="never")
    return ThreadTuner(thread_counts(cores), first, occupied_cpus, places_threads=can_place_threads(cores))
