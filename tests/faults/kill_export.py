"""Kills exports with SIGKILL at random moments, calls them again, and compares with unbroken ones.

python -m tests.faults.kill_export --times 100 --seed 0

After each kill no file under a final name may differ from the unbroken export's; in the end all are there, and nothing
else. The proof is left out: it writes nothing, and each call makes it anew.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from gladstone.artifacts import check_files, read_manifest, sha256_file
from tests.export.tiny_runs import write_run
from tests.faults.forked import exit_code, fork, warm_up
from tests.faults.killing import HALF, Phase, kill, work_folder
from tests.tiny_models import write_model

PHASES = ("beginning", "merging", "converting", "writing the matrix", "quantising", "splitting", "finishing")
GGUF = ("--quant", "f16", "--quant", "q8_0", "--imatrix", "train", "--imatrix-chunks", "4")
COMMANDS = {
    "merge": ("merge", "--shard-gb", "0.01"),
    "gguf": ("gguf", *GGUF, "--quant", "q4_k_m", "--with-base"),
    "split": ("gguf", *GGUF, "--split", "10MB"),
    "lora": ("lora",),
}
OWN = ("export.log", ".export-state.json")


def trace(phase: Phase) -> None:
    """Note in the child what it is at; leave the proof out."""
    import export.making
    import export.merged
    import export.pipeline
    from export.proof.heldout import HeldOut

    unproven: dict[str, Any] = {
        "verify_file": lambda *_, **__: [],
        "check_quantised": lambda *_: {},
        "held_out_loss": lambda *_: HeldOut((1.0,), (1,)),
    }
    for name, nothing in unproven.items():
        setattr(export.making, name, nothing)
    phase.name = "beginning"
    phase.wrap(export.merged, "write_shard", "merging")
    phase.wrap(export.merged, "_manifest", "finishing")
    phase.wrap(export.making, "convert", "converting")
    phase.wrap(export.making, "write_lora", "converting")
    phase.wrap(export.making, "compute_imatrix", "writing the matrix")
    phase.wrap(export.making, "quantise", "quantising")
    phase.wrap(export.making, "split_gguf", "splitting")
    phase.wrap(export.pipeline, "_finish", "finishing")


class Export:
    """A command on a tiny run, and what it makes unbroken."""

    def __init__(self, work: Path, run: Path, name: str, expected: set[tuple[str, str]]) -> None:
        self.work, self.run, self.name, self.phase = work, run, name, Phase(PHASES)
        begin_s = time.monotonic()
        out = work / f"unbroken-{name}"
        code = self.wait(self.start(out))
        self.length_s = time.monotonic() - begin_s
        if code:
            sys.exit(f"the unbroken {name} fails:\n{self.told}")
        expected |= {(path.name, sha256_file(path)) for path in weights(out)}
        self.all = {path.name for path in out.iterdir()}
        shutil.rmtree(out)

    @property
    def told(self) -> str:
        return (self.work / "stderr").read_text(errors="replace")

    def start(self, out: Path) -> int:
        """Begin, or go on."""
        command, *options = COMMANDS[self.name]
        arguments = [command, str(self.run), "--out", str(out), *options]
        return fork(arguments, self.work / "stdout", self.work / "stderr", partial(trace, self.phase), cli="export.cli")

    @staticmethod
    def wait(pid: int) -> int:
        return exit_code(os.waitpid(pid, 0)[1])

    def check(self, out: Path, kills: Counter[str], expected: set[tuple[str, str]]) -> None:
        """What is there under a final name is whole."""
        for path in weights(out):
            if (path.name, sha256_file(path)) not in expected:
                sys.exit(f"after {dict(kills)} {path} is not as the unbroken {self.name} makes it")
        if (out / "manifest.json").is_file():
            check_files(out, read_manifest(out))


def weights(out: Path) -> list[Path]:
    """The files under a final name whose bytes depend on nothing but the run."""
    return [path for path in out.glob("[!.]*") if path.suffix in (".gguf", ".safetensors")]


def attack(export: Export, out: Path, chance: random.Random, most: int, expected: set[tuple[str, str]]) -> Counter[str]:
    """Kill and call again until an export ends; checks what is there each time. Returns the kills by phase."""
    kills: Counter[str] = Counter()
    while True:
        pid = export.start(out)
        broken = sum(kills.values()) < most and chance.random() < (1 if not kills else HALF)
        phase = kill(pid, export.phase, chance, export.length_s, PHASES[1:5]) if broken else None
        code = export.wait(pid)
        export.check(out, kills, expected)
        if code == -signal.SIGKILL and phase is not None:
            kills[phase] += 1
        elif code:
            sys.exit(f"after {dict(kills)} the {export.name} fails with {code}:\n{export.told}")
        else:
            break
    found = {path.name for path in out.iterdir()}
    if found - {*OWN} != export.all - {*OWN} or OWN[1] in found:
        sys.exit(f"after {dict(kills)} {out} holds {sorted(found)}, expected {sorted(export.all)}")
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up()
    chance, kills, runs, begin_s = random.Random(options.seed), Counter[str](), 0, time.monotonic()
    with work_folder("kill-export-") as work:
        run = write_run(work / "run", write_model(work / "base"))
        expected: set[tuple[str, str]] = set()  # of every command: what one keeps, another has for a moment
        exports = [Export(work, run, name, expected) for name in COMMANDS]
        while sum(kills.values()) < options.times:
            out = work / f"out-{runs}"
            most = options.times - sum(kills.values())
            kills += attack(exports[runs % len(exports)], out, chance, most, expected)
            shutil.rmtree(out)
            runs += 1
    by_phase = ", ".join(f"{name} {kills[name]}" for name in PHASES if kills[name])
    print(f"{sum(kills.values())} kills over {runs} exports ({by_phase}) in {time.monotonic() - begin_s:.0f} s:")
    print("never a half file under a final name, and every export ended with the bytes of the unbroken one.")


if __name__ == "__main__":
    main()
