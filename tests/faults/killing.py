"""Killing a command at random moments: what it is at, told by one shared byte, the moment, and how it goes on."""

import argparse
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from tests.faults.forked import exit_code, fork, warm_up

HALF = 0.5


class Phase:
    """The shared byte. Of the phases the later ones lie inside the earlier ones."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._byte = mmap.mmap(-1, 1)

    @property
    def name(self) -> str:
        return self.names[self._byte[0]]

    @name.setter
    def name(self, name: str) -> None:
        self._byte[0] = self.names.index(name)

    def wrap(self, owner: Any, name: str, phase: str, after: str | None = None) -> None:
        """In the child: note the phase while a function runs."""
        call: Callable[..., Any] = getattr(owner, name)

        @wraps(call)
        def traced(*arguments: Any, **named: Any) -> Any:
            before, self.name = self.name, phase
            try:
                return call(*arguments, **named)
            finally:
                self.name = after or before

        setattr(owner, name, traced)


class Victim(ABC):
    """A command that can be killed and called again."""

    cli = "finetune.cli"
    repeated: Sequence[str] = ()  # phases of which there are many

    def __init__(self, name: str, work: Path, phases: Sequence[str]) -> None:
        self.name, self.work, self.phase = name, work, Phase(phases)
        self.length_s = 0.0

    @abstractmethod
    def arguments(self, out: Path) -> list[str]:
        """What begins it, or goes on."""

    @abstractmethod
    def trace(self) -> None:
        """Note in the child what it is at."""

    @abstractmethod
    def look(self, out: Path, kills: Counter[str]) -> bool:
        """After each call: is a killed one done all the same? Exits if what is there is not as it should be."""

    @abstractmethod
    def compare(self, out: Path, kills: Counter[str]) -> None:
        """In the end: is all there, as unbroken? Exits if not."""

    @property
    def told(self) -> str:
        return (self.work / "stderr").read_text(errors="replace")

    def start(self, out: Path) -> int:
        """Begin, or go on; returns the process id."""
        return fork(self.arguments(out), self.work / "stdout", self.work / "stderr", self.trace, cli=self.cli)

    def run_unbroken(self, out: Path) -> None:
        """Once without a kill, which shows how long it takes. Exits if it fails."""
        begin_s = time.monotonic()
        code = wait(self.start(out))
        self.length_s = time.monotonic() - begin_s
        if code:
            sys.exit(f"the unbroken {self.name} fails:\n{self.told}")


def wait(pid: int) -> int:
    """A child's exit code."""
    return exit_code(os.waitpid(pid, 0)[1])


def attack(victim: Victim, out: Path, chance: random.Random, most: int) -> Counter[str]:
    """Kill and go on until a command ends, looking at what is there each time. Returns the kills by phase."""
    kills: Counter[str] = Counter()
    while True:
        pid = victim.start(out)
        broken = sum(kills.values()) < most and chance.random() < (1 if not kills else HALF)
        phase = kill(pid, victim.phase, chance, victim.length_s, victim.repeated) if broken else None
        code = wait(pid)
        done = victim.look(out, kills)
        if code == -signal.SIGKILL and phase is not None:
            kills[phase] += 1
            if done:
                break
        elif code:
            sys.exit(f"after {dict(kills)} the {victim.name} fails with {code}:\n{victim.told}")
        else:
            break
    victim.compare(out, kills)
    return kills


def kill_often(about: str | None, make: Callable[[Path], Sequence[Victim]], what: str) -> None:
    """The command line of a script: so many kills over as many runs as that takes, of each victim in turn."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--times", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up()
    chance, kills, runs, begin_s = random.Random(options.seed), Counter[str](), 0, time.monotonic()
    with _work_folder() as work:
        victims = make(work)
        while kills.total() < options.times:
            out = work / f"out-{runs}"
            kills += attack(victims[runs % len(victims)], out, chance, options.times - kills.total())
            shutil.rmtree(out)
            runs += 1
            print(f"{kills.total()} kills over {runs} {what}, all as they should be", file=sys.stderr, flush=True)
    by_phase = ", ".join(f"{name} {kills[name]}" for name in victims[0].phase.names if kills[name])
    print(f"{kills.total()} kills over {runs} {what} ({by_phase}) in {time.monotonic() - begin_s:.0f} s:")


def kill(pid: int, phase: Phase, chance: random.Random, length_s: float, repeated: Sequence[str] = ()) -> str | None:
    """Kill a child at a random moment, or a moment after it has come to a random phase; None if it ended before.

    Of `repeated` phases it may be a later one.
    """
    aim = chance.choice(phase.names) if chance.random() < HALF else None
    skipped = chance.randrange(8) if aim in repeated else 0
    moment_s = chance.uniform(0, length_s) if aim is None else chance.uniform(0, 0.03)
    if aim is not None and not _reached(phase, pid, aim, skipped):
        return None
    deadline_s = time.monotonic() + moment_s
    while time.monotonic() < deadline_s:
        time.sleep(0.0002)
    name = phase.name
    if not _alive(pid):
        return None
    os.kill(pid, signal.SIGKILL)
    return name


def _reached(phase: Phase, pid: int, aim: str, skipped: int) -> bool:
    inside = False
    while _alive(pid):
        was, inside = inside, phase.name == aim
        if inside and not was:
            skipped -= 1
            if skipped < 0:
                return True
        time.sleep(0.0001)
    return False


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder that stays if a comparison fails, to be looked into."""
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    yield folder
    shutil.rmtree(folder)
