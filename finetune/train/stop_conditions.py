"""What stops a training before its end: the user's limits, Ctrl-C and SIGTERM."""

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Self

RESERVE = 1.5  # times the measured time of saving, for a slower disk or a busy one


class Interrupted(Exception):  # noqa: N818 - no error
    """A measurement stopped because the user or a limit stops the run."""


@dataclass(frozen=True)
class CallLimits:
    """Limits of one call: hours since `begin_s` (of `time.monotonic`), optimizer steps, tokens; None: no limit."""

    max_hours: float | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    begin_s: float = field(default_factory=time.monotonic)

    def reached(self, steps: int, tokens: int, next_s: float) -> str:
        """Return why the call must stop now, '' if it need not; `next_s` is the time of the next step and of saving."""
        if self.max_steps is not None and steps >= self.max_steps:
            return f"--max-steps {self.max_steps}"
        if self.max_tokens is not None and tokens >= self.max_tokens:
            return f"--max-tokens {self.max_tokens}"
        return self.time_name if self.out_of_time(next_s) else ""

    def out_of_time(self, needed_s: float) -> bool:
        """True if there is a time limit and less than `needed_s` is left."""
        return self.max_hours is not None and self.max_hours * 3600 - (time.monotonic() - self.begin_s) < needed_s

    @property
    def time_name(self) -> str:
        """The time limit as the user gave it, '' if there is none."""
        return "" if self.max_hours is None else f"--max-hours {self.max_hours:g}"


class Interruption:
    """A context in which the first Ctrl-C or SIGTERM is recorded for the loop; a second one stops the process."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other thread
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.caught is not None:
            signal.signal(number, self._before[signal.Signals(number)])
            os.kill(os.getpid(), number)
            return
        self.caught = signal.Signals(number)

    @property
    def name(self) -> str:
        """The name of the signal for messages, '' if there was none."""
        return {None: "", signal.SIGINT: "Ctrl-C"}.get(self.caught, "SIGTERM")
