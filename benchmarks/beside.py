"""Speed of Gladstone and its peers on a quiet machine, beside one busy loop and beside two.

    python -m benchmarks.beside MODEL.gguf [--peers FOLDER] [--rows ROWS.json] [--before CHECKOUT]
        [--only decode prefill proof train imatrix bench] [--rounds 3]

All sides run at the same time and take turns, each idle while another works, so that a drift of the machine's speed
affects all of them. FOLDER holds llama-completion; ROWS.json, with `input` and `output`, is the training data for
Gladstone and for transformers with PEFT. CHECKOUT is another checkout of this repository to measure against.
Run it on an otherwise idle machine: it starts and ends the busy loops itself. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from benchmarks.beside_ours import DECODED, READ
from benchmarks.runtime_ours import STORY

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ("quiet", "beside one", "beside two")
LIMIT_S, START_S = 20.0, 120.0  # after that a side counts as stalled
PAUSE_S = 1.5  # between two sides: each looks at what else runs, and the one before is no other work
UNITS = {"decode": "tokens/s", "prefill": "tokens/s", "proof": "questions/s", "train": "tokens/s"}
UNITS |= {"imatrix": "tokens/s", "bench": "items/s"}
Side = Callable[[], float | None]


class Child:
    """A process that does its work once for each line that it receives."""

    def __init__(self, command: list[str], root: Path, environment: dict[str, str]) -> None:
        environment = os.environ | environment
        environment["PYTHONPATH"] = str(root)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the child
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, cwd=root
        )
        self._text = b""
        self._records("ready", START_S)

    def work(self) -> float | None:
        """What it measures; None if it stalls."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            return None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        records = self._records("turn", LIMIT_S)
        if records is None:
            self.close()  # what stands still would disturb the others
            return None
        if "rate" in records[-1]:
            return float(records[-1]["rate"])
        return float(sum(each["tokens"] for each in records[:-1]) / sum(each["seconds"] for each in records[:-1]))

    def _records(self, until: str, limit_s: float) -> list[dict[str, Any]] | None:
        """Its lines up to one of this kind; None if it does not come in time. Raises SystemExit if the child died."""
        assert self._process.stdout is not None
        found: list[dict[str, Any]] = []
        end_s = time.perf_counter() + limit_s
        while True:
            line, newline, rest = self._text.partition(b"\n")
            if newline:
                self._text = rest
                if line.startswith(b"@"):
                    found.append(json.loads(line[1:]))
                    if found[-1].get("kind") == until:
                        return found
                continue
            if not select.select([self._process.stdout], [], [], max(0.0, end_s - time.perf_counter()))[0]:
                return None
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                self._errors.seek(0)
                sys.exit(f"{self._process.args!r} ended with {self._process.wait()}:\n{self._errors.read()[-3000:]}")
            self._text += data

    def close(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def completion(peers: Path, model: Path, kind: str) -> Side:
    """llama-completion with its defaults, a process for each measurement, as it is used."""
    prompt = STORY if kind == "decode" else " ".join(STORY.split()[number % 19] for number in range(READ))
    tokens = DECODED if kind == "decode" else 2
    command = [str(peers / "llama-completion"), "-m", str(model), "-no-cnv", "--ignore-eos", "-n", str(tokens)]
    command += ["--temp", "0", "-c", "1024", "-p", prompt, "--no-display-prompt"]
    pattern = r"(?<!prompt )eval time = .*?([\d.]+) tokens per second"
    if kind == "prefill":
        pattern = r"prompt eval time = .*?([\d.]+) tokens per second"

    def work() -> float | None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        except subprocess.TimeoutExpired:
            return None
        found = re.search(pattern, done.stderr)
        assert found
        return float(found[1])

    return work


def sides_of(kind: str, options: argparse.Namespace, stack: ExitStack) -> dict[str, Side]:
    """Who is measured, by name, ready to work."""
    trees = {"ours": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    if kind == "train":
        names = {"ours": "gladstone-eager", "before": "gladstone-eager", "transformers + PEFT": "peft-tuned"}
        trees["transformers + PEFT"] = ROOT
        arguments = [str(options.rows.resolve()), "--turn", "1", "--batch", "4"]
        commands = {name: ["benchmarks/train_speed.py", *arguments, "--rival", names[name]] for name in trees}
    else:
        # of both checkouts the same measurement is made, and what it calls is each one's own
        measure = str(ROOT / "benchmarks" / "beside_ours.py")
        commands = {name: [measure, kind, str(options.model.resolve())] for name in trees}
    sides: dict[str, Side] = {}
    for name, command in commands.items():
        # an engine measures its threads anew, on the quiet machine; what the others need is in the user's cache
        own = {"GLADSTONE_CACHE": stack.enter_context(tempfile.TemporaryDirectory())}
        child = Child([sys.executable, *command], trees[name], own if kind in ("decode", "prefill", "bench") else {})
        sides[name] = stack.enter_context(child).work
    if options.peers and kind in ("decode", "prefill"):
        sides["llama-completion"] = completion(options.peers.resolve(), options.model.resolve(), kind)
    return sides


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many programs that do nothing but compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if loops else 0.0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(kind: str, options: argparse.Namespace) -> dict[str, list[list[float | None]]]:
    """Rates of each side at each level; None where it stood still."""
    with ExitStack() as stack:
        sides = sides_of(kind, options, stack)
        rates: dict[str, list[list[float | None]]] = {name: [[] for _ in LEVELS] for name in sides}
        for level in range(len(LEVELS)):
            with busy(level):
                for number in range(options.rounds):
                    for name in list(sides)[:: 1 if number % 2 else -1]:
                        time.sleep(PAUSE_S)
                        rates[name][level].append(sides[name]())
    return rates


def row(kind: str, name: str, levels: list[list[float | None]]) -> str:
    """A line of the table: medians, and what is left of the quiet speed."""
    quiet, *others = (_median(rates) for rates in levels)
    cells = [f"{quiet:.3g}"]
    cells += [f"no end in {LIMIT_S:.0f} s" if rate is None else f"{rate:.3g} ({rate / quiet:.2f})" for rate in others]
    return f"| {kind}, {UNITS[kind]} | {name} | {' | '.join(cells)} |"


def _median(rates: list[float | None]) -> Any:
    """None if it stood still in half of the rounds or more."""
    known = [rate for rate in rates if rate is not None]
    return statistics.median(known) if len(known) > len(rates) / 2 else None


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", type=Path, help="folder with llama-completion")
    parser.add_argument("--rows", type=Path, help="rows to train on, with `input` and `output`")
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--only", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "train" in options.only and options.rows is None:
        parser.error("training needs --rows")
    print(f"| | | {' | '.join(LEVELS)} |\n|---|---|{'--:|' * len(LEVELS)}", flush=True)
    everything = {}
    for kind in options.only:
        everything[kind] = measure(kind, options)
        for name, levels in everything[kind].items():
            print(row(kind, name, levels), flush=True)
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
