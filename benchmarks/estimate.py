"""Compare `finetune estimate` with `finetune run`: peak memory and time of a step, in child processes.

    python -m benchmarks.estimate --data /path/to/medical_meadow_small.json [--only NAME]

Each case runs the estimate in one process and, directly after it, the run in another, both through the commands. Bases
are the embedded model and random weights in the shapes of others. Prints a Markdown table. Fails if memory is off by
more than 15 % or time by more than 25 %; with `--lenient`, for a busy machine, it only prints.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.families import FAMILIES
from tests.families import write_tokenizer as write_family_tokenizer
from tests.tiny_models import write_tokenizer

ROWS = 150
MEMORY_LIMIT, TIME_LIMIT = 0.15, 0.25
EMBEDDED = "embedded:smollm2-135m-instruct"
GPT2 = ("lora.targets=[c_attn, c_proj]", "base.chat_template=template:instruction")
T5 = ("lora.targets=[q, v]", "base.chat_template=template:flan-t5-medical")


@dataclass(frozen=True)
class Case:
    """A base and the settings of a run."""

    name: str
    base: str
    batch: int
    max_tokens: int
    four_bit: bool = False
    recomputes: bool = False
    more: tuple[str, ...] = field(default=())
    steps: int = 4


CASES = (
    Case("smollm2 b2", EMBEDDED, 2, 256),
    Case("smollm2 b8", EMBEDDED, 8, 256),
    Case("smollm2 b4 long", EMBEDDED, 4, 512, steps=3),
    Case("smollm2 b8 ckpt", EMBEDDED, 8, 256, recomputes=True),
    Case("smollm2 b2 4bit", EMBEDDED, 2, 256, four_bit=True),
    Case("smollm2 b8 4bit", EMBEDDED, 8, 256, four_bit=True, steps=3),
    Case("smollm2 b4 4bit ckpt long", EMBEDDED, 4, 512, four_bit=True, recomputes=True, steps=3),
    Case("smollm2 b4 qv r64", EMBEDDED, 4, 256, more=("lora.targets=[q_proj, v_proj]", "lora.rank=64")),
    Case("llama-230m b4", "llama-230m", 4, 256, steps=3),
    Case("llama-230m b4 4bit ckpt", "llama-230m", 4, 256, four_bit=True, recomputes=True, steps=3),
    Case("distilgpt2 b4 long", "distilgpt2", 4, 512, more=GPT2),
    Case("distilgpt2 b8 ckpt", "distilgpt2", 8, 256, recomputes=True, more=GPT2),
    Case("flan-t5-small b4", "flan-t5-small", 4, 256, more=T5),
    Case("flan-t5-small b8 ckpt", "flan-t5-small", 8, 256, recomputes=True, more=T5),
    Case("qwen3-0.6b b2 4bit", "qwen3-0.6b", 2, 192, four_bit=True, steps=2),
    Case("gemma3-270m b2", "gemma3-270m", 2, 256, steps=3),
)


@dataclass(frozen=True)
class Found:
    """Estimated and measured, in bytes and seconds."""

    memory: tuple[float, float]
    step: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="rows in the alpaca format")
    parser.add_argument("--only", default="", help="only cases whose name holds one of these, after commas")
    parser.add_argument("--steps", type=int, help="optimizer steps of every case, in place of its own")
    parser.add_argument("--lenient", action="store_true", help="print, and do not fail: for a machine that is busy")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(json.dumps(json.loads(chosen.data.read_text())[:ROWS]))
        cases = [case for case in CASES if any(name in case.name for name in chosen.only.split(","))]
        cases = [replace(case, steps=chosen.steps or case.steps) for case in cases]
        run_cases(rows, cases, lenient=chosen.lenient)


def run_cases(rows: Path, cases: Sequence[Case], *, lenient: bool) -> None:
    columns = ("run", "batch", "max tokens", "base", "activations", "peak, estimate / measured", "ratio",
               "step, estimate / measured", "ratio")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    missed = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(case, rows, Path(folder))
        memory, step = found.memory[0] / found.memory[1], found.step[0] / found.step[1]
        print(
            f"| {case.name} | {case.batch} | {case.max_tokens} | {'NF4' if case.four_bit else '16/32 bit'} "
            f"| {'recomputed' if case.recomputes else 'kept'} "
            f"| {found.memory[0] / 1e9:.2f} / {found.memory[1] / 1e9:.2f} GB | {memory:.2f} "
            f"| {found.step[0]:.2f} / {found.step[1]:.2f} s | {step:.2f} |",
            flush=True,
        )
        if abs(memory - 1) > MEMORY_LIMIT or abs(step - 1) > TIME_LIMIT:
            missed.append(case.name)
    if missed and not lenient:
        sys.exit(f"outside of the limits: {', '.join(missed)}")


def measure(case: Case, data: Path, folder: Path) -> Found:
    """The estimate and the run of a case."""
    base = EMBEDDED if case.base == EMBEDDED else str(write_base(case.base, folder / "base"))
    switch = {True: "on", False: "off"}[case.recomputes]
    settings = [
        f"base.model={base}", f"base.max_tokens={case.max_tokens}", f"base.load_in_4bit={str(case.four_bit).lower()}",
        "base.long_rows=cut", f"training.batch_size={case.batch}", "training.accumulation=1",
        f"training.max_steps={case.steps}", f"training.gradient_checkpointing={switch}", "training.evaluations=1",
        "data.test=8", "data.validation=8", *case.more,
    ]  # fmt: skip
    common = ["smollm2-135m-medical", "--data", str(data), "--format", "alpaca"]
    common += [part for each in settings for part in ("--set", each)]
    said = json.loads(finetune("estimate", *common, "--json").splitlines()[-1])
    finetune("run", *common, "--out", str(folder / "run"))
    made = json.loads((folder / "run" / "manifest.json").read_text())
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step_s"] for line in lines if line["kind"] == "step"]
    return Found(
        (said["memory_bytes"]["peak"], made["facts"]["peak_memory_bytes"]), (said["step_s"], sum(steps) / len(steps))
    )


def finetune(*arguments: str) -> str:
    """A command of ours in a process of its own."""
    code = "from finetune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"finetune {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def write_base(name: str, folder: Path) -> Path:
    """Random weights in the shape of a published model."""
    import torch
    import transformers

    folder.mkdir()
    if name == "flan-t5-small":
        write_family_tokenizer(FAMILIES["flan-t5"], folder)
    else:
        write_tokenizer(folder)
    llama = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 2048}
    kind, config = {
        "llama-230m": lambda: ("LlamaForCausalLM", transformers.LlamaConfig(
            vocab_size=49_152, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
            num_key_value_heads=4, tie_word_embeddings=True, **llama)),
        "qwen3-0.6b": lambda: ("Qwen3ForCausalLM", transformers.Qwen3Config(
            vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, **llama)),
        "gemma3-270m": lambda: ("Gemma3ForCausalLM", transformers.Gemma3TextConfig(
            vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, sliding_window=512, tie_word_embeddings=True, **llama)),
        "distilgpt2": lambda: ("GPT2LMHeadModel", transformers.GPT2Config(
            vocab_size=50_257, n_embd=768, n_layer=6, n_head=12, n_positions=1024, bos_token_id=1, eos_token_id=2,
            pad_token_id=2)),
        "flan-t5-small": lambda: ("T5ForConditionalGeneration", transformers.T5Config(
            vocab_size=32_128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=0, eos_token_id=1)),
    }[name]()  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, kind)(config).bfloat16().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
