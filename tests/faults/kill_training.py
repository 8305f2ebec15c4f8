"""Kills a short training with SIGKILL at random moments, goes on with --resume, and compares with an unbroken one.

python -m tests.faults.kill_training --times 100 --seed 0
"""

import argparse
import json
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

import yaml

from tests.families import write_family
from tests.faults.forked import exit_code, fork, warm_up
from tests.faults.killing import HALF, Phase, kill, work_folder
from tests.tiny_models import tiny_recipe, write_rows_file

# what the child is at, told by one shared byte; the later ones lie inside the earlier ones
PHASES = (
    "preparing", "loading", "measuring", "training", "noting", "evaluating", "saving", "pruning", "saving the adapter",
    "finishing", "tidying",
)  # fmt: skip
REPEATED = ("noting", "evaluating", "saving", "pruning")
STEPS = 30


def trace(phase: Phase) -> None:
    """Note in the child what it is at."""
    from finetune import checkpoint, journal, loop, run, session
    from finetune.evaluation import Judge

    phase.name = "preparing"
    phase.wrap(session, "load_trainable", "loading")
    phase.wrap(session, "measure_loss", "measuring")
    phase.wrap(loop.Loop, "run", "training")
    phase.wrap(journal.Journal, "_write", "noting")
    phase.wrap(Judge, "judge", "evaluating")
    phase.wrap(checkpoint, "save", "saving")
    phase.wrap(checkpoint, "prune", "pruning")
    phase.wrap(session, "_save_adapter", "saving the adapter")
    phase.wrap(run, "_finish", "finishing")
    phase.wrap(run, "write_manifest", "finishing", "tidying")
    phase.wrap(run, "write_inputs", "preparing")


class Training:
    """A recipe on a tiny model in a folder of its own, and what an unbroken run of it comes to."""

    def __init__(self, work: Path) -> None:
        self.work, self.phase = work, Phase(PHASES)
        training = {
            "max_steps": STEPS, "checkpoint_steps": 2, "batch_size": 2, "accumulation": 2, "batch_tokens": 80,
            "evaluations": 6, "schedule": "cosine", "warmup_share": 0.1,
        }  # fmt: skip
        base, rows = write_family("llama3", work / "base"), write_rows_file(work / "rows.jsonl")
        self.recipe = work / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(tiny_recipe(base, rows, lora={"dropout": 0.1}, training=training)))
        begin_s = time.monotonic()
        code = self.wait(self.start(work / "unbroken"))
        self.length_s = time.monotonic() - begin_s
        if code:
            sys.exit(f"the unbroken run fails:\n{self.told}")
        self.expected = outcome(work / "unbroken")

    @property
    def told(self) -> str:
        return (self.work / "stderr").read_text(errors="replace")

    def start(self, out: Path) -> int:
        """Begin, or go on."""
        arguments = ["run", str(self.recipe), "--out", str(out), "--resume"]
        return fork(arguments, self.work / "stdout", self.work / "stderr", partial(trace, self.phase))

    @staticmethod
    def wait(pid: int) -> int:
        return exit_code(os.waitpid(pid, 0)[1])


def outcome(out: Path) -> tuple[list[dict[str, Any]], bytes, dict[str, Any]]:
    """Metrics without times, the adapter's bytes, and the manifest's losses."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name != "step_s"} for line in lines]
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    losses = {name: facts[name] for name in ("held_out_loss_before", "held_out_loss_after", "best_step", "steps")}
    return metrics, (out / "adapter" / "adapter_model.safetensors").read_bytes(), losses


def attack(training: Training, out: Path, chance: random.Random, most: int) -> Counter[str]:
    """Kill and go on until a run ends; checks that it ends as the unbroken one. Returns the kills by phase."""
    kills: Counter[str] = Counter()
    while True:
        pid = training.start(out)
        broken = sum(kills.values()) < most and chance.random() < (1 if not kills else HALF)
        phase = kill(pid, training.phase, chance, training.length_s, REPEATED) if broken else None
        code = training.wait(pid)
        if code == -signal.SIGKILL and phase is not None:
            kills[phase] += 1
            if (out / "manifest.json").is_file():
                break
            continue
        if code:
            sys.exit(f"after {dict(kills)} the run fails with {code}:\n{training.told}")
        break
    found = outcome(out)
    for name, expected, mine in zip(("metrics", "adapter", "losses"), training.expected, found, strict=True):
        if expected != mine:
            sys.exit(f"after {dict(kills)} the {name} differ from the unbroken run's: {out}")
    left = [path for path in out.rglob(".*.partial") if "checkpoints" not in path.parts]
    if left:
        sys.exit(f"after {dict(kills)} these are left: {left}")
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warm_up()
    chance, kills, runs, begin_s = random.Random(options.seed), Counter[str](), 0, time.monotonic()
    with work_folder("kill-training-") as work:
        training = Training(work)
        while sum(kills.values()) < options.times:
            kills += attack(training, work / f"run-{runs}", chance, options.times - sum(kills.values()))
            shutil.rmtree(work / f"run-{runs}")
            runs += 1
    by_phase = ", ".join(f"{name} {kills[name]}" for name in PHASES if kills[name])
    print(f"{sum(kills.values())} kills over {runs} runs ({by_phase}) in {time.monotonic() - begin_s:.0f} s:")
    print("every run ended with the metrics, losses and adapter bytes of the unbroken one.")


if __name__ == "__main__":
    main()
