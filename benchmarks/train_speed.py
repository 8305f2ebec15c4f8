"""Training speed on this processor: Gladstone against Unsloth and transformers + PEFT, by defaults and tuned.

    python benchmarks/train_speed.py ROWS.json [--minutes 2] [--curves 200]

ROWS.json has `input` and `output` (medAlpaca's flashcards). All rivals train the same LoRA (rank 16 on all linear
layers) of the embedded SmolLM2-135M on the same rows, 8 in a step, in weights of the same type. A rival and Gladstone
live in a process each and train in turns of a few steps, so that whatever else the machine does falls on both alike.
What is counted are real tokens, never padding. Compilation is part of the first turn, anew for each pair; what a run of
ten minutes makes of it is the last column.

With --curves the losses of that many steps on the same rows in the same order are compared instead; what
`gladstone-seed` differs by is noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RIVALS = {
    "gladstone": "compiled layers",
    "gladstone-eager": "not compiled",
    "gladstone-seed": "compiled, the adapter begun with other numbers",
    "unsloth-tuned": "no checkpointing, grouped by length, answers only",
    "unsloth-compiled": "as tuned, UNSLOTH_CPU_COMPILE=1",
    "unsloth": "its defaults",
    "peft-tuned": "transformers.Trainer, grouped by length, answers only",
    "peft": "transformers.Trainer, its defaults",
}
OURS = ("gladstone", "gladstone-seed")  # no rivals: what differs is the noise of a curve
HEAD = """
| rival | | tokens/s | padding | peak memory | first turn | ours: tokens/s | peak memory | first turn | ratio | of a 10-minute run |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|""".strip()  # noqa: E501
ROWS_PER_STEP, LEARNING_RATE, RUN_S = 8, 2e-4, 600.0


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of each rival")
    parser.add_argument("--turn", type=int, default=3, help="steps in a turn")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=[name for name in RIVALS if name not in OURS])
    parser.add_argument("--batch", type=int, default=ROWS_PER_STEP)
    parser.add_argument("--curves", type=int, help="compare the losses of so many steps, in the same order of rows")
    parser.add_argument("--rival", choices=RIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rival:
        train(options)
    elif options.curves:
        compare_curves(options)
    else:
        compare_speed(options)


class Rival:
    """A child that trains a turn at each `go`."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, str(options.rows), "--rival", name, "--batch", str(options.batch)]
        command += ["--curves", str(options.curves)] if options.curves else ["--turn", str(options.turn)]
        self._cache = tempfile.TemporaryDirectory()
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": self._cache.name}  # nothing compiled before
        if name == "unsloth-compiled":
            environment["UNSLOTH_CPU_COMPILE"] = "1"
        self.name, self.steps = name, list[dict[str, float]]()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the child
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        self._read("ready")

    def _read(self, until: str) -> None:
        for line in self._child.stdout or ():
            if line.startswith("@"):
                record = json.loads(line[1:])
                if record.get("kind") == until:
                    return
                self.steps.append(record)
        self._log.seek(0)
        self._child.wait()
        sys.exit(f"{self.name} ended with {self._child.returncode}:\n{self._log.read()[-3000:]}")

    def go(self) -> None:
        """Train a turn."""
        assert self._child.stdin is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()
        self._read("turn")

    @property
    def seconds(self) -> float:
        """Time of all steps so far."""
        return sum(step["seconds"] for step in self.steps)

    def end(self) -> None:
        """Stop the child."""
        self._child.kill()
        self._child.wait()
        self._cache.cleanup()


def compare_speed(options: argparse.Namespace) -> None:
    """Each rival in turns with Gladstone; a table of real tokens a second and their ratios."""
    print(HEAD, flush=True)
    for name in options.rivals:
        pair = Rival("gladstone", options), Rival(name, options)
        try:
            while min(len(rival.steps) for rival in pair) <= options.turn or pair[1].seconds < options.minutes * 60:
                for rival in pair:
                    rival.go()
        finally:
            for rival in pair:
                rival.end()
        print(row(*pair, options.turn), flush=True)


def row(ours: Rival, rival: Rival, turn: int) -> str:
    """One line of the table."""
    (our_speed, our_start_s, our_run), (speed_, start_s, run) = (speed(each, turn) for each in (ours, rival))
    padding = statistics.mean(step["padding"] for step in rival.steps)
    memory, our_memory = (each.steps[-1]["memory"] / 1e9 for each in (rival, ours))
    return (
        f"| {rival.name} | {RIVALS[rival.name]} | {speed_:.0f} | {padding:.0%} | {memory:.1f} GB "
        f"| {start_s:.0f} s | {our_speed:.0f} | {our_memory:.1f} GB | {our_start_s:.0f} s "
        f"| {our_speed / speed_:.2f}× | {our_run / run:.2f}× |"
    )


def speed(rival: Rival, turn: int) -> tuple[float, float, float]:
    """Steady tokens/s, seconds of the first turn, and tokens of a ten-minute run."""
    first, rest = rival.steps[:turn], rival.steps[turn:]
    steady = sum(step["tokens"] for step in rest) / sum(step["seconds"] for step in rest)
    first_s, first_tokens = (sum(step[name] for step in first) for name in ("seconds", "tokens"))
    return steady, first_s, first_tokens + steady * (RUN_S - first_s)


def compare_curves(options: argparse.Namespace) -> None:
    """Two rivals one after the other on the same rows in the same order."""
    curves = {}
    for name in ("gladstone", *options.rivals):
        rival = Rival(name, options)
        while len(rival.steps) < options.curves:
            rival.go()
        rival.end()
        curves[name] = [step["loss"] for step in rival.steps]
    first, *others = curves
    for other in others:
        apart = [abs(a - b) for a, b in zip(curves[first], curves[other], strict=True)]
        print(
            f"{first} against {other}, {len(apart)} steps: losses differ by {max(apart):.2e} at most, by "
            f"{statistics.mean(apart):.2e} in the mean; last ten steps {statistics.mean(curves[first][-10:]):.4f} and "
            f"{statistics.mean(curves[other][-10:]):.4f}"
        )


# ---- in the child


def tell(**record: Any) -> None:
    """One line for the parent."""
    print("@" + json.dumps(record), flush=True)


class Turns:
    """Waits for its turn, and tells of each step."""

    def __init__(self, steps: int) -> None:
        self._steps, self._made = steps, 0
        tell(kind="ready")

    def begin(self) -> None:
        """Before a step."""
        if self._made % self._steps == 0:
            if self._made:
                tell(kind="turn")
            if not sys.stdin.readline():
                os._exit(0)
        self._begin_s = time.perf_counter()

    def end(self, tokens: int, computed_tokens: int, loss: float) -> None:
        """After a step."""
        from gladstone.machine.host import peak_memory_bytes

        seconds = time.perf_counter() - self._begin_s
        self._made += 1
        tell(
            tokens=tokens, seconds=seconds, padding=1 - tokens / computed_tokens, loss=loss, memory=peak_memory_bytes()
        )


def train(options: argparse.Namespace) -> None:
    """One rival, until it is killed."""
    from finetune.model.trainable import prepare_environment

    if options.rival.startswith("gladstone"):
        prepare_environment()  # part of what is measured; the others get what they set by themselves
    else:
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp()
    if options.rival.startswith(("gladstone", "unsloth")):
        import unsloth  # noqa: F401 - before transformers
    from gladstone.commands.progress import Silent
    from gladstone.models.base_model import resolve_base

    base = resolve_base("embedded:smollm2-135m-instruct", Silent())
    examples = read_examples(options.rows, base)
    if options.rival.startswith("gladstone"):
        train_gladstone(base, examples, options)
    else:
        train_peer(base, examples, options)


def read_examples(path: Path, base: Any) -> Any:
    """The rows as tokens, shuffled once."""
    import random

    from finetune.config.row_limits import RowLimits
    from finetune.tokens.labeller import tokenize_all
    from gladstone.chat.messages import Conversation, Message
    from gladstone.models.tokenizer import load_tokenizer

    rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["input"] and row["output"]]
    random.Random(0).shuffle(rows)
    conversations = [
        Conversation((Message("user", row["input"]), Message("assistant", row["output"])), f"row {number}")
        for number, row in enumerate(rows)
    ]
    tokenizer = load_tokenizer(base.folder)
    return tokenize_all(conversations, tokenizer.template(None), tokenizer, RowLimits(384)).examples


def train_gladstone(base: Any, examples: Any, options: argparse.Namespace) -> None:
    """The loop as `finetune run` calls it."""
    from finetune.config.schema import Recipe
    from finetune.model.load import load_trainable
    from finetune.monitor.callbacks import Callback
    from finetune.train.evaluation import Validator
    from finetune.train.job import Job
    from finetune.train.loop import Loop
    from finetune.train.stop_conditions import CallLimits

    training = {
        "batch_size": options.batch, "learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_share": 0.0,
        "evaluations": 1, "max_steps": 100_000, "checkpoint_minutes": 10,
        "seed": 1 if options.rival == "gladstone-seed" else 0,
        "compile": "off" if options.rival == "gladstone-eager" else "on",
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {
            "name": "speed",
            "base": {"model": base.name, "load_in_4bit": False},
            "data": {"sources": [{"path": "sample:flashcards", "format": "qa"}]},
            "lora": {"rank": 16, "alpha": 32},
            "training": training,
        }
    )
    trainable = load_trainable(base, recipe, 2, examples)
    turns = Turns(options.curves or options.turn)

    class Told(Callback):
        def on_train_begin(self, history: Any, total: int) -> None:
            turns.begin()

        def on_step_end(self, stats: Any, total: int) -> None:
            turns.end(stats.tokens, round(stats.tokens / (1 - stats.padding_share)), stats.loss_nats_per_token)
            turns.begin()

    folder = Path(tempfile.mkdtemp())
    job = Job(trainable, examples, recipe, folder, {}, lambda rows: [str(row) for row in rows])
    loop = Loop(job, Validator(trainable, examples[:8], recipe.training), CallLimits(), (Told(),))
    if options.curves:
        loop.schedule.rows = lambda step: tuple(range(step * options.batch, (step + 1) * options.batch))  # type: ignore[method-assign]
    loop.run()


def train_peer(base: Any, examples: Any, options: argparse.Namespace) -> None:
    """Unsloth with TRL's trainer, or transformers' own with PEFT."""
    tuned, default = options.rival not in ("unsloth", "peft"), options.rival in ("unsloth", "peft")
    rows = [
        {"input_ids": list(each.input_ids), "labels": list(each.input_ids if default else each.labels)}
        for each in examples
    ]
    lora: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": list(TARGETS), "lora_dropout": 0.0}
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": options.batch, "max_steps": 100_000,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 1, "remove_unused_columns": False,
        "optim": "adamw_torch_fused",
    }  # fmt: skip
    if options.curves:
        settings["train_sampling_strategy"] = "sequential"
    elif tuned:
        settings["train_sampling_strategy"] = "group_by_length"
    if options.rival.startswith("unsloth"):
        from trl import SFTConfig, SFTTrainer
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(str(base.folder), max_seq_length=1024, load_in_4bit=False)
        lora["use_gradient_checkpointing"] = False if tuned else "unsloth"
        model = FastLanguageModel.get_peft_model(model, **lora, random_state=0)
        settings["gradient_checkpointing"] = not tuned
        arguments = SFTConfig(**settings, max_length=1024, dataset_kwargs={"skip_prepare_dataset": True})
        kind: Any = SFTTrainer
    else:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

        half = torch.cpu._is_avx512_bf16_supported()  # where Unsloth, and with it Gladstone, takes bfloat16
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16 if half else torch.float32)
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM"))
        arguments = TrainingArguments(**settings, use_cpu=True, bf16=half)
        kind = Trainer
    run_trainer(kind, model, arguments, rows, Turns(options.curves or options.turn))


def run_trainer(kind: Any, model: Any, arguments: Any, rows: Any, turns: Turns) -> None:
    """Train with callbacks that take turns."""
    from datasets import Dataset
    from transformers import TrainerCallback

    counted = [0, 0]

    def collate(batch: Any) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in batch)
        counted[:] = sum(len(row["input_ids"]) for row in batch), width * len(batch)

        def padded(name: str, filler: int) -> Any:
            return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in batch])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch])
        return {"input_ids": padded("input_ids", 2), "labels": padded("labels", -100), "attention_mask": mask}

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                turns.end(self.trained[0], self.trained[1], logs["loss"])
                turns.begin()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.trained = list(counted)

    trainer = kind(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), data_collator=collate, callbacks=[Told()]
    )
    trainer.train()


if __name__ == "__main__":
    main()
