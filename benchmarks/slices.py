"""Two programs measured against each other in slices: each is stopped while the other one works.

The speed of a shared machine varies by several per cent within seconds; a ratio of two consecutive runs would take this
for a difference between them. Here both run at the same time, one working for a sixteenth of a second at a time, so
that both see the same machine. For POSIX systems.
"""

import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Sequence

SLICE_S = 0.06
PATIENCE_S = 120  # for a first output


class Sliced:
    """A program that writes while it works. Begins stopped, right after its first output."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises SystemExit if it writes nothing."""
        self.seconds = 0.0  # at work, from its first output to its last
        self.done = False
        self._at_work = 0.0
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        if not self._read(PATIENCE_S):
            self._process.kill()
            raise SystemExit(f"{command[0]} writes nothing")
        self._signal(signal.SIGSTOP)

    def work(self) -> None:
        """Go on for one slice."""
        begin_s = time.perf_counter()
        self._signal(signal.SIGCONT)
        while (left_s := begin_s + SLICE_S - time.perf_counter()) > 0:
            data = self._read(left_s)
            if data == b"":
                self.done = True
                if self._process.wait() != 0:
                    raise SystemExit(f"{self._process.args!r} failed")
                return
            if data:
                self.seconds = self._at_work + time.perf_counter() - begin_s
        self._signal(signal.SIGSTOP)
        self._at_work += time.perf_counter() - begin_s

    def _read(self, timeout_s: float) -> bytes | None:
        """What it wrote; nothing at its end, None if nothing came in time."""
        return os.read(self._pipe, 65536) if select.select([self._pipe], [], [], timeout_s)[0] else None

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End it, wherever it is."""
        if not self.done:
            self._signal(signal.SIGKILL)
        with self._process:
            pass


def in_slices(*commands: Sequence[str]) -> list[float]:
    """Seconds of work that each command took from its first output to its last."""
    programs = [Sliced(command) for command in commands]
    try:
        while working := [program for program in programs if not program.done]:
            random.shuffle(working)
            for program in working:
                program.work()
        return [program.seconds for program in programs]
    finally:
        for program in programs:
            program.close()
