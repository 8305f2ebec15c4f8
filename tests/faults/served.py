"""Commands one after the other in one process, which the file system may refuse what a user is refused.

`python -m tests.faults.served` reads lines of JSON on stdin, `[words of a command, …]`, and answers each with its exit
code, what it printed, and the traceback if it ended with one. `serve` is the other end: where the tests run as root,
the process has none of root's rights over permissions.
"""

import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DROP_CAPABILITY, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2  # prctl.h, capability.h


@dataclass(frozen=True)
class Ended:
    """What became of a command."""

    code: int
    output: str
    traceback: str


def serve(commands: Iterable[Sequence[str]], environment: Mapping[str, str], largest_file: int = -1) -> list[Ended]:
    """Run the commands; no file may grow beyond `largest_file` bytes, where that is given."""
    lines = "".join(json.dumps(list(command)) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.served", str(largest_file)],
        input=lines,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | dict(environment),
        preexec_fn=_give_up_rights if sys.platform == "linux" and os.geteuid() == 0 else None,
    )
    return [Ended(**json.loads(line)) for line in done.stdout.splitlines()]


def _give_up_rights() -> None:
    """Of root: to read and write whatever the permissions say. The next program starts without them."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(DROP_CAPABILITY, capability, 0, 0, 0)


def _answer(words: list[str]) -> Ended:
    from click.testing import CliRunner

    from gladstone.cli import main

    result = CliRunner().invoke(main, words, input="")
    failed = result.exception is not None and not isinstance(result.exception, SystemExit)
    told = "".join(traceback.format_exception(result.exception)) if failed else ""
    return Ended(result.exit_code, result.output, told)


def _main(largest_file: int) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if largest_file >= 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line)).__dict__), file=answers, flush=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
