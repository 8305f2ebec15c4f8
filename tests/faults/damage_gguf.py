"""Damage small real models in every way known, and count what becomes of a process that opens them.

    python -m tests.faults.damage_gguf --files 1000 --seed 0 [--manifest]

Each file goes through what the engine does: the guard, the trial in a child, then a real load and a few words, all in a
process that plays the user's, so that its crash is counted. Wanted: no crash there, nothing over 5 s of processor time,
memory bounded, one line for each refusal; with a manifest of the sound file beside it, none accepted.
"""

import argparse
import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.artifacts import Manifest, record_file, write_manifest
from tests.faults import vocabulary_damages  # noqa: F401 - enters its kinds
from tests.faults.damages import DAMAGES, damaged
from tests.faults.tiny_ggufs import MODELS

HANG_S, GIVE_UP_S = 5.0, 60.0
BUSY = 4  # as many times longer a file may take by the clock on a machine that has other work
# our reader may take 200 MB for a header (test_gladstone_gguf.py); the rest is llama.cpp's copy of it and a tiny context
ROOM_BYTES = 300_000_000
OUTCOMES = ("guard", "manifest", "trial", "template", "loaded", "refused late", "crashed")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What became of one file, and what it took."""

    kind: str
    base: str
    outcome: str
    message: str
    wall_s: float
    processor_s: float  # of the process and its child
    peak_bytes: int  # over what the process, or the child's own code, takes without the file
    size_bytes: int

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = {
            "crashed": self.outcome == "crashed",
            "hung": self.processor_s > HANG_S or self.wall_s > BUSY * HANG_S,
            "memory": self.peak_bytes > ROOM_BYTES + 2 * self.size_bytes,
            "lines": len(self.message.splitlines()) > 1,
        }
        return [name for name, is_so in found.items() if is_so]


class User:
    """A process that opens files as the engine does; a new one is started when it dies."""

    def __init__(self, cache: Path) -> None:
        self._environment = os.environ | {"GLADSTONE_CACHE": str(cache), "GGML_NO_BACKTRACE": "1"}
        self._process: subprocess.Popen[str] | None = None

    def open(self, path: Path) -> dict[str, Any]:
        """What it tells of a file: `outcome`, `message`, `peak_bytes` and `processor_s`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.damage_gguf", "--user"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=self._environment, cwd=ROOT,
            )  # fmt: skip
            self._answer()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        self._process.stdin.flush()
        line = self._answer()
        if line:
            told: dict[str, Any] = json.loads(line)
            return told
        self._process.kill()
        code = self._end(self._process)
        return {"outcome": "crashed", "message": f"exit code {code}", "peak_bytes": 0, "processor_s": 0.0}

    def _answer(self) -> str:
        """Its next line, '' if it died or says nothing."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(GIVE_UP_S) else ""

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._end(self._process)

    def _end(self, process: "subprocess.Popen[str]") -> int:
        """Close its pipes, at which it ends, and wait for that."""
        self._process = None
        with suppress(BrokenPipeError), process:
            assert process.stdin is not None
            process.stdin.close()
        return process.returncode


def run(files: int, seed: int, folder: Path, *, with_manifest: bool = False) -> Iterator[Result]:
    """Damage files of every kind in turn and try each."""
    draw = random.Random(seed)
    user = User(folder / "cache")
    target = folder / "models" / "model.gguf"
    target.parent.mkdir(parents=True)
    for number in range(files):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        base = list(MODELS)[number // len(DAMAGES) % len(MODELS)]
        if with_manifest:
            target.write_bytes(MODELS[base]().content())
            record = record_file(target.parent, target)
            write_manifest(target.parent, Manifest("export", (record,), {}, {}, {}))
        target.write_bytes(damaged(kind, MODELS[base], draw))
        begin_s = time.perf_counter()
        told = user.open(target)
        wall_s = time.perf_counter() - begin_s
        yield Result(kind, base, **told, wall_s=wall_s, size_bytes=target.stat().st_size)
    user.close()


def table(results: list[Result]) -> str:
    """By kind of damage, what became of its files; then all of them."""
    columns = (*OUTCOMES, "hung", "memory", "lines")
    lines = [f"{'damage':<36}{'files':>6}" + "".join(f"{name:>14}" for name in columns)]
    for kind in (*DAMAGES, "all"):
        ours = [result for result in results if kind in (result.kind, "all")]
        counts = Counter(result.outcome for result in ours)
        counts.update(problem for result in ours for problem in result.problems if problem != "crashed")
        lines.append(f"{kind:<36}{len(ours):>6}" + "".join(f"{counts[name]:>14}" for name in columns))
    slowest = max(results, key=lambda result: result.wall_s)
    largest = max(results, key=lambda result: result.peak_bytes - 2 * result.size_bytes)
    lines.append(
        f"slowest: {slowest.wall_s:.2f} s, {slowest.processor_s:.2f} s of processor time ({slowest.kind}, {slowest.base}, {slowest.outcome})"
    )
    lines.append(f"largest: {largest.peak_bytes / 1e6:.0f} MB for {largest.size_bytes / 1e6:.1f} MB ({largest.kind})")
    return "\n".join(lines)


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--manifest", action="store_true", help="a manifest of the sound file lies beside each")
    parser.add_argument("--messages", action="store_true", help="print every refusal")
    parser.add_argument("--user", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.user:
        from tests.faults.damage_user import serve

        serve()
        return
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for result in run(arguments.files, arguments.seed, Path(folder), with_manifest=arguments.manifest):
            results.append(result)
            if arguments.messages or result.problems:
                print(
                    f"{result.kind}, {result.base}: {result.outcome} {result.problems} {result.message!r}", flush=True
                )
    print(table(results))
    accepted = any(result.outcome in ("loaded", "template", "refused late") for result in results)
    sys.exit(any(result.problems for result in results) or (arguments.manifest and accepted))


if __name__ == "__main__":
    main()
