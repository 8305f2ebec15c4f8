"""How many threads to compute with, found out while they compute. Pure: what evaluations took comes from outside.

Fewer threads are faster beside other work, since all of them wait for the one whose processor somebody else has; more
are faster once the machine is quiet again. Where other work begins, one thread less for each processor that it takes is
the first guess, and for prompts threads that are spread unevenly (`gladstone.machine.thread_placement`); where it
ends, what was best
before. From there a neighbouring number is tried for a twentieth of a second now and then, and whatever took less time
is kept. What such trials cost is counted, and bounded: half a hundredth of the time as long as nothing changes, two
hundredths at most.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gladstone.machine.host import Cores, read_cores
from gladstone.machine.openmp import other_processors
from gladstone.machine.other_work import FELT
from gladstone.machine.thread_placement import may_spread, spread_threads

TRIAL_S = 0.05  # a trial lasts until then: a dozen of the system's time slices
WINDOW_S = 0.1  # what it is compared with
BETTER = 0.93  # less time than this share is worth a change
CHANGED = 1.25  # so much more time, or less, than when the number was chosen: something else has changed
# shares of the time that trials may cost: for no reason, beside other work, and because of a change
QUIET_SHARE, BUSY_SHARE, MOST_SHARE = 0.005, 0.01, 0.02
UNKNOWN_LOSS, LEAST_LOSS = 0.5, 0.05  # what share of a trial is lost, if it was never tried, and in any case
PAUSE_S = 2.0  # after such a pause earlier times say nothing
FEW_TOKENS = 16
READ_TOKENS = 4  # a batch of one token takes about so many tokens' time for the weights alone
ONE, FEW, MANY = range(3)
Held = Literal["quiet", "always", "never"]


def thread_counts(cores: Cores) -> tuple[int, ...]:
    """Counts that are worth trying, the smallest first."""
    most, physical = cores.usable, min(cores.physical, cores.usable)
    counts = {most, physical, physical - 1, physical * 3 // 4, physical // 2, physical // 4}
    counts |= {1 << power for power in range(most.bit_length()) if 1 << power < most}
    return tuple(sorted(count for count in counts if count >= 1))


class Spent:
    """Work and the seconds it took."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, float]] = deque()
        self.work = self.seconds = 0.0

    def add(self, work: float, seconds: float) -> None:
        self._parts.append((work, seconds))
        self.work += work
        self.seconds += seconds

    def keep(self, seconds: float) -> None:
        """Forget what lies before the last `seconds`."""
        while self._parts and self.seconds - self._parts[0][1] >= seconds:
            work, spent_s = self._parts.popleft()
            self.work -= work
            self.seconds -= spent_s

    @property
    def cost(self) -> float:
        """Seconds for one piece of work."""
        return self.seconds / self.work

    @property
    def longest_s(self) -> float:
        """The longest of the parts."""
        return max((seconds for _, seconds in self._parts), default=0.0)


class Choice:
    """The number of threads for evaluations of one kind."""

    def __init__(self, counts: Sequence[int], first: int, *, many: bool = False, spreads: bool = False) -> None:
        """`many` for batches of many tokens; `spreads` if more threads than processors can be spread for them."""
        self._quiet_counts = self._counts = tuple(sorted({*counts, first}))
        self._many, self._spreads = many, spreads
        self._at = self._counts.index(first)
        self._tried: int | None = None
        self._trial, self._window = Spent(), Spent()
        self._losses: dict[int, float] = {}
        self._chosen_cost: float | None = None
        self._down, self._busy = False, False
        self._best: dict[bool, int] = {}  # what was found best beside other work, and without
        # a number that was chosen in a busy moment is found out at once
        self._urgent = self._at < len(self._counts) - 1
        self.total_s = self.lost_s = 0.0  # of all evaluations, and what trials took beyond what the rest would have

    @property
    def count(self) -> int:
        """Threads for the next evaluation."""
        return self._counts[self._at if self._tried is None else self._tried]

    @property
    def chosen(self) -> int:
        """What is found best so far."""
        return self._counts[self._at]

    @property
    def quiet(self) -> int:
        """What is found best while nothing else is on the machine."""
        return self._best[False] if self._busy else self.chosen

    def meet(self, others: float) -> None:
        """Other work takes so many processors: where that begins or ends go on with what is best then."""
        busy = others >= FELT
        if busy == self._busy:
            return
        self.interrupt()
        self._best[self._busy] = before = self.chosen
        extra = spread_threads(self._quiet_counts[-1], others) if busy and self._spreads else None
        self._counts = self._quiet_counts if extra is None else (*self._quiet_counts, extra)
        best = self._best.get(busy) or self._guess(others, before, extra)
        self._at = max(place for place, count in enumerate(self._counts) if count <= max(best, self._counts[0]))
        self._busy, self._down, self._chosen_cost = busy, busy and extra is None, None
        self._losses.clear()
        # with nothing to go by, or if the number may come from a busy moment, it is found out at once
        self._urgent = self.chosen == before if busy else self._at < len(self._counts) - 1

    def _guess(self, others: float, before: int, extra: int | None) -> int:
        """Beside other work: a thread less for each processor that it takes, or threads that are spread."""
        most, taken = self._quiet_counts[-1], round(others)
        if extra is not None and taken:
            return extra
        if taken < most:
            return min(before, most - taken)
        return before if self._many else max(1, before // 2)

    def took(self, work: float, seconds: float) -> None:
        """An evaluation with `count` threads."""
        self.total_s += seconds
        if self._tried is not None:
            self._trial.add(work, seconds)
            if self._trial.seconds >= TRIAL_S:
                self._judge()
            return
        self._window.add(work, seconds)
        self._window.keep(WINDOW_S)
        if len(self._counts) > 1 and self._window.seconds >= TRIAL_S:
            self._consider()

    def interrupt(self) -> None:
        """What comes next cannot be compared with what was before."""
        if self._tried is not None:
            self._end_trial()
        self._window = Spent()

    def _consider(self) -> None:
        """Begin a trial if it is time for one."""
        cost = self._window.cost
        before, self._chosen_cost = self._chosen_cost or cost, self._chosen_cost or cost
        if not before / CHANGED <= cost <= before * CHANGED:
            self._urgent, self._down, self._chosen_cost = True, cost > before, cost
        place = self._at + (-1 if self._down else 1)
        if not 0 <= place < len(self._counts):
            self._down = not self._down
            place = self._at + (-1 if self._down else 1)
        if self._urgent and self.lost_s <= MOST_SHARE * self.total_s:
            self._tried = place
        else:
            loss_s = self._losses.get(place, UNKNOWN_LOSS) * max(TRIAL_S, self._window.longest_s)
            share = BUSY_SHARE if self._busy else QUIET_SHARE
            self._tried = place if self.lost_s + loss_s <= share * self.total_s else None

    def _judge(self) -> None:
        """Keep the number that was tried if it is clearly faster."""
        trial, place = self._trial, self._tried
        cost = self._window.cost
        self._urgent = False
        self._end_trial()
        if place is not None and trial.cost < BETTER * cost:
            self._at, self._window, self._chosen_cost = place, trial, trial.cost
            self._urgent = 0 < place < len(self._counts) - 1  # and further in the same direction
        else:
            self._chosen_cost = cost
            self._down = not self._down

    def _end_trial(self) -> None:
        trial, place = self._trial, self._tried
        if place is not None and trial.work:
            lost_s = max(0.0, trial.seconds - trial.work * self._window.cost)
            self.lost_s += lost_s
            self._losses[place] = max(LEAST_LOSS, lost_s / trial.seconds)
        self._tried, self._trial = None, Spent()


@dataclass(frozen=True)
class First:
    """The counts to begin with, for one token and for more.

    `held` says when single tokens keep to theirs although another would be faster, where the count changes the last
    bits of the result: "quiet" unless other work is a reason to leave it, "always", or "never".
    """

    one: int
    more: int
    held: Held = "quiet"


class Pace:
    """The number of threads for each batch: one token, a few of them (several requests at a time), or many (prompts).

    `others` gives the processors that other work takes. One thread at a time may use it.
    """

    def __init__(
        self, counts: Sequence[int], first: First, others: Callable[[], float], *, spreads: bool = False
    ) -> None:
        """`spreads` if more threads than processors can be spread unevenly, as `gladstone.machine.thread_placement`
        does."""
        self._first = first
        self._most = max(*counts, first.one, first.more)
        many = Choice(counts, first.more, many=True, spreads=spreads)
        self._choices = (Choice(counts, first.one), Choice(counts, first.more), many)
        self._others = others
        self._kind = MANY
        self._held = False
        self._last_s = 0.0

    def threads(self, tokens: int, *, divides: bool = False) -> int:
        """Threads for a batch of so many tokens; `divides` if their number changes the last bits of what comes out."""
        others = self._others()
        kind = ONE if tokens == 1 else FEW if tokens <= FEW_TOKENS else MANY
        if kind != self._kind:
            for each in (ONE, FEW):  # the next one is at another place of a text, mostly
                self._choices[each].interrupt()
            self._kind = kind
        held = self._first.held
        self._held = divides and (held == "always" or (held == "quiet" and others < FELT))
        if self._held:
            return self._first.one
        self._choices[kind].meet(others)
        return self._choices[kind].count

    def are_spread(self, threads: int) -> bool:
        """Whether so many are more than processors, to be spread."""
        return threads > self._most

    def took(self, tokens: int, seconds: float, now_s: float) -> None:
        """The evaluation for which `threads` was asked last ended at `now_s`."""
        if now_s - self._last_s > seconds + PAUSE_S:
            for choice in self._choices:
                choice.interrupt()
        self._last_s = now_s
        if not self._held:
            self._choices[self._kind].took(tokens + READ_TOKENS, seconds)

    @property
    def found(self) -> int | None:
        """A count for single tokens that was found better than the first one on a quiet machine; None for none."""
        quiet = self._choices[ONE].quiet
        return quiet if quiet != self._first.one else None


def pace_for(first: First | None = None) -> Pace:
    """The pace of an evaluation on this machine, to begin with all processors if nothing else is said."""
    cores = read_cores()
    first = first or First(cores.usable, cores.usable, held="never")
    return Pace(thread_counts(cores), first, other_processors, spreads=may_spread(cores))
