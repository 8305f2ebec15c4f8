"""Kills a short training with SIGKILL at random moments, goes on with --resume, and compares with an unbroken one.

python -m tests.faults.kill_training --times 100 --seed 0
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tests.families import write_family
from tests.faults.killing import Victim, kill_often
from tests.tiny_models import tiny_recipe, write_rows_file

# what the child is at, told by one shared byte; the later ones lie inside the earlier ones
PHASES = (
    "preparing", "loading", "measuring", "training", "noting", "evaluating", "saving", "pruning", "saving the adapter",
    "finishing", "tidying",
)  # fmt: skip
REPEATED = ("noting", "evaluating", "saving", "pruning")
STEPS = 30


class Training(Victim):
    """A recipe on a tiny model in a folder of its own, and what an unbroken run of it comes to."""

    repeated = REPEATED

    def __init__(self, work: Path) -> None:
        super().__init__("run", work, PHASES)
        training = {
            "max_steps": STEPS, "checkpoint_steps": 2, "batch_size": 2, "accumulation": 2, "batch_tokens": 80,
            "evaluations": 6, "schedule": "cosine", "warmup_share": 0.1,
        }  # fmt: skip
        base, rows = write_family("llama3", work / "base"), write_rows_file(work / "rows.jsonl")
        self.recipe = work / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(tiny_recipe(base, rows, lora={"dropout": 0.1}, training=training)))
        self.run_unbroken(work / "unbroken")
        self.expected = outcome(work / "unbroken")

    def arguments(self, out: Path) -> list[str]:
        return ["run", str(self.recipe), "--out", str(out), "--resume"]

    def trace(self) -> None:
        from finetune import run
        from finetune.monitor import metrics_log
        from finetune.train import checkpoint, loop, session
        from finetune.train.evaluation import Validator

        phase = self.phase
        phase.name = "preparing"
        phase.wrap(session, "load_trainable", "loading")
        phase.wrap(session, "measure_loss", "measuring")
        phase.wrap(loop.Loop, "run", "training")
        phase.wrap(metrics_log.MetricsLog, "_write", "noting")
        phase.wrap(Validator, "evaluate", "evaluating")
        phase.wrap(checkpoint, "save", "saving")
        phase.wrap(checkpoint, "prune", "pruning")
        phase.wrap(session, "_save_adapter", "saving the adapter")
        phase.wrap(run, "_finish", "finishing")
        phase.wrap(run, "write_manifest", "finishing", "tidying")
        phase.wrap(run, "write_inputs", "preparing")

    def look(self, out: Path, kills: Counter[str]) -> bool:
        return (out / "manifest.json").is_file()

    def compare(self, out: Path, kills: Counter[str]) -> None:
        for name, expected, mine in zip(("metrics", "adapter", "losses"), self.expected, outcome(out), strict=True):
            if expected != mine:
                sys.exit(f"after {dict(kills)} the {name} differ from the unbroken run's: {out}")
        left = [path for path in out.rglob(".*.partial") if "checkpoints" not in path.parts]
        if left:
            sys.exit(f"after {dict(kills)} these are left: {left}")


def outcome(out: Path) -> tuple[list[dict[str, Any]], bytes, dict[str, Any]]:
    """Metrics without times, the adapter's bytes, and the manifest's losses."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name != "step_s"} for line in lines]
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    losses = {name: facts[name] for name in ("held_out_loss_before", "held_out_loss_after", "best_step", "steps")}
    return metrics, (out / "adapter" / "adapter_model.safetensors").read_bytes(), losses


if __name__ == "__main__":
    kill_often(__doc__, lambda work: [Training(work)], "runs")
    print("every run ended with the metrics, losses and adapter bytes of the unbroken one.")
