"""Export of an adapter to f16, q8_0 and q4_k_m: Gladstone against PEFT's merge and llama.cpp's own tools.

    python -m benchmarks.export_speed --peers FOLDER [--shape smollm2|1b|3b] [--rounds 3] [--ours]

FOLDER holds llama.cpp's llama-quantize, built from the version that is installed. Both sides take turns, start from the
same base and adapter, and write the same three files. Time is wall time; memory is the largest sum over a side's
processes of what each has of its own and its part of what it shares (PSS); bytes written are those of all files made.
Gladstone's side omits the proof and what depends on it (Modelfile, model card); the proof is timed separately, once.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from export.convert.llamacpp_converter import converter_folder
from export.merge.plan import read_plan
from export.tensors.safetensors_io import TensorSpec, plan_shards, writing
from gladstone.commands.progress import Silent
from gladstone.models.base_model import resolve_base
from gladstone.models.embedded_model import EMBEDDED
from tests.export.tiny_runs import write_run
from tests.tiny_models import write_tokenizer

QUANTS = ("q8_0", "q4_k_m")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, POLL_S = 16, 0.1
OURS = """
import sys
from pathlib import Path
import export.build as making
import export.pipeline as pipeline
from export.build import ExportOptions
from export.original.model import SourceOptions
from export.pipeline import export_gguf
from export.proof.heldout import HeldOut
from export.proof.trained import Trained
from gladstone.commands.progress import Silent
from gladstone.chat.template import ChatTemplate
making.trained_of = lambda original, onto: Trained(
    None, ChatTemplate(original.template_source), original.base.folder, original.adapter, (), onto
)
making.verify_file = lambda *_, **__: []
making.check_quantised = lambda *_: ({}, HeldOut((1.0,), (1,)))
pipeline._hand_over = lambda *_: []
export_gguf(Path(sys.argv[1]), SourceOptions(), ExportOptions(("f16", "q8_0", "q4_k_m")), Path(sys.argv[2]), Silent())
"""
THEIRS = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, tokenizer, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)
"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int


SHAPES = {"1b": Shape(2048, 16, 32, 8, 8192), "3b": Shape(3072, 28, 24, 8, 8192)}  # those of Llama 3.2


@dataclass(frozen=True)
class Cost:
    """What a side took."""

    wall_s: float
    peak_bytes: int
    written_bytes: int


def main() -> None:
    """Make base and adapter, run both sides in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with llama-quantize")
    parser.add_argument("--shape", choices=("smollm2", *SHAPES), default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", action="store_true", help="our side alone")
    options = parser.parse_args()
    if not options.ours and not options.peers:
        parser.error("--peers is missing (or --ours)")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run, base = make_run(work, options.shape)
        ours, theirs = [], []
        for turn in range(options.rounds):
            ours.append(measure([[sys.executable, "-c", OURS, str(run), "{out}"]], work / f"ours-{turn}"))
            if not options.ours:
                theirs.append(measure(peer(run, base, options.peers), work / f"theirs-{turn}"))
        show(options.shape, ours, theirs)
        largest = max(stored.size_bytes for stored in read_plan(base, [], "16bit").sources.values())
        print(f"\nThe base's largest tensor has {largest / 1e6:.0f} MB.")
        if options.shape == "smollm2":
            print(f"The proof of the three files takes {proof_s(run, work / 'proof'):.0f} s besides.")


def make_run(work: Path, shape: str) -> tuple[Path, Path]:
    """A finished run's folder with a random adapter over the embedded model, or over random weights of a shape."""
    base = resolve_base(EMBEDDED, Silent()).folder if shape == "smollm2" else write_base(work / "base", SHAPES[shape])
    write_random_adapter(base, work / "adapter")
    return write_run(work / "run", base, work / "adapter"), base


def write_base(folder: Path, shape: Shape) -> Path:
    """A Llama of random bf16 weights, tensor by tensor."""
    import torch

    folder.mkdir()
    write_tokenizer(folder)
    vocabulary, width, inner = 49_152, shape.width, shape.inner
    kv = width // shape.heads * shape.kv_heads
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "intermediate_size": inner, "head_dim": width // shape.heads,
        "vocab_size": vocabulary, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [TensorSpec("model.embed_tokens.weight", "BF16", (vocabulary, width))]
    for layer in range(shape.layers):
        shapes = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        tensors += [TensorSpec(f"model.layers.{layer}.{name}.weight", "BF16", each) for name, each in shapes.items()]
    tensors.append(TensorSpec("model.norm.weight", "BF16", (width,)))
    shards = plan_shards(tensors, 2_000_000_000)
    for name, each in shards.items():
        with writing(folder / name, each) as shard:
            for tensor in each:
                shard.write(torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02)
    if len(shards) > 1:
        where = {tensor.name: name for name, each in shards.items() for tensor in each}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def write_random_adapter(base: Path, folder: Path) -> None:
    """A LoRA of rank 16 on all linear layers, as PEFT saves it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    chance, tensors = np.random.default_rng(0), {}
    for name, stored in read_plan(base, [], "16bit").sources.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS:
            out, inner = stored.shape
            for half, shape in (("A", (RANK, inner)), ("B", (out, RANK))):
                values = chance.standard_normal(shape, np.float32) * 0.01
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": list(TARGETS),
        "lora_dropout": 0.0, "bias": "none", "base_model_name_or_path": str(base), "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def peer(run: Path, base: Path, tools: Path) -> list[list[str]]:
    """The commands of the other side; `{out}` is its folder."""
    converter = converter_folder(Silent())
    f16 = "{out}/model-f16.gguf"
    merge = [sys.executable, "-c", THEIRS, str(base), str(run / "adapter"), str(run / "tokenizer"), "{out}/merged"]
    convert = [
        sys.executable,
        str(converter / "convert_hf_to_gguf.py"),
        "{out}/merged",
        "--outtype",
        "f16",
        "--outfile",
        f16,
    ]
    quantise = [[str(tools / "llama-quantize"), f16, f"{{out}}/model-{quant}.gguf", quant] for quant in QUANTS]
    return [merge, convert, *quantise]


def measure(commands: list[list[str]], out: Path) -> Cost:
    """Run commands one after another. Raises RuntimeError with what one told if it fails."""
    out.mkdir()
    begin_s, peak = time.perf_counter(), 0
    for command in commands:
        filled = [each.replace("{out}", str(out)) for each in command]
        with tempfile.TemporaryFile("w+") as told:
            child = psutil.Popen(filled, stdout=told, stderr=told, text=True)
            while child.poll() is None:
                peak = max(peak, tree_bytes(child))
                time.sleep(POLL_S)
            if child.returncode:
                told.seek(0)
                raise RuntimeError(f"{filled[:3]} failed:\n{told.read()[-3000:]}")
    wall_s = time.perf_counter() - begin_s
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return Cost(wall_s, peak, written)


def tree_bytes(process: Any) -> int:
    """Memory of a process and its children now, shared pages divided among those that share them."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            # the sum alone: to read every mapping of a process takes time from it
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="ascii")
            total += 1024 * sum(map(int, re.findall(r"(?m)^Pss: +(\d+) kB", rollup)))
    except (psutil.Error, OSError):
        pass  # one has just ended
    return total


def proof_s(run: Path, out: Path) -> float:
    """What the proof adds to an export."""
    whole = OURS.partition("making.trained_of")[0] + OURS[OURS.index("export_gguf(Path") :]
    with_proof = measure([[sys.executable, "-c", whole, str(run), "{out}"]], out)
    return with_proof.wall_s - measure([[sys.executable, "-c", OURS, str(run), "{out}"]], out).wall_s


def show(shape: str, ours: list[Cost], theirs: list[Cost]) -> None:
    """Medians with their spread, and ratios turn by turn."""
    print(
        f"| {shape} | Gladstone | PEFT, convert_hf_to_gguf, llama-quantize | ratio, median (range) |\n|---|--:|--:|--:|"
    )
    for name, unit, scale in (("wall_s", "s", 1.0), ("peak_bytes", "MB", 1e6), ("written_bytes", "MB", 1e6)):
        mine, other = ([getattr(cost, name) / scale for cost in side] for side in (ours, theirs))
        told = f"{statistics.median(mine):.1f} {unit}"
        if not other:
            print(f"| {name} | {told} | | |")
            continue
        ratios = sorted(one / two for one, two in zip(mine, other, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        print(f"| {name} | {told} | {statistics.median(other):.1f} {unit} | {spread} |")


if __name__ == "__main__":
    main()
