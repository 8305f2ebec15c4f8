"""Killing a command at random moments: what it is at, told by one shared byte, and the moment."""

import mmap
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

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
def work_folder(prefix: str) -> Iterator[Path]:
    """A folder that stays if a comparison fails, to be looked into."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    yield folder
    shutil.rmtree(folder)
