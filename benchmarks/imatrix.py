"""Measure the effect of an importance matrix on a run, and compare the matrix with llama-imatrix's.

    python -m benchmarks.imatrix runs/mine [--peers FOLDER] [--chunks 100]

Quantises the run's model with and without the matrix of its own training rows, and prints for each type the cost
against the F16 on held-out rows. `--peers` names a folder with llama.cpp's own llama-imatrix, built from the same
version: its matrix of the same text is compared with ours, entry by entry.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from export.convert.convert import Conversion, convert
from export.original.finding import find, opened
from export.original.model import Original
from export.proof.quantised import check_quantised
from export.proof.trained import trained_of
from export.quantise.imatrix import Calibration, calibration, compute_imatrix, read_imatrix
from export.quantise.quantise import quantise
from export.quantise.types import Quantisation, needs_imatrix
from gladstone.commands.progress import Silent
from gladstone.formats import read_conversations

QUANTS = ("q4_k_m", "q3_k_m", "iq3_xs", "q2_k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--peers", type=Path, help="folder with llama-imatrix")
    parser.add_argument("--chunks", type=int, default=100, help="times 512 tokens")
    chosen = parser.parse_args()
    with opened(find(chosen.run), Silent()) as original:
        measure(chosen, original)


def measure(chosen: argparse.Namespace, original: Original) -> None:
    """Print what the importance matrix of the run's training rows brings to each type."""
    trained = trained_of(original)
    rows = read_conversations(chosen.run / "data" / "train.jsonl", "prepared")
    text = calibration("train.jsonl", rows, trained.template, trained.tokenizer.hf.eos_token or "", chosen.chunks)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        f16, matrix = folder / "model-f16.gguf", folder / "imatrix.gguf"
        convert(Conversion("model", trained.base, original.tokenizer, original.adapters), f16, Silent())
        begin_s = time.perf_counter()
        compute_imatrix(f16, text, matrix, Silent())
        print(f"{read_imatrix(matrix).chunks} chunks in {time.perf_counter() - begin_s:.0f} s\n")
        if chosen.peers:
            compare(chosen.peers / "llama-imatrix", f16, text, matrix, folder)
        files = {}
        for quant in QUANTS:
            for used in (None, matrix):
                if used or not needs_imatrix(quant):
                    name = quant if used is None else f"{quant} + matrix"
                    files[name] = folder / f"{name}.gguf"
                    quantise(f16, files[name], Quantisation(quant, imatrix=used), Silent())
        print("| type | file | mean KL, nats | top-1 | perplexity ratio [95 %] |\n|---|--:|--:|--:|--:|")
        for name, point in check_quantised(f16, files, trained, Silent())[0].items():
            found = point.measured
            low, high = found["perplexity_ratio_interval"]
            print(
                f"| {name} | {files[name].stat().st_size / 1e6:.1f} MB | {found['mean_kl_nats']:.4f} "
                f"| {found['top1_agreement']:.1%} | {found['perplexity_ratio']:.3f} [{low:.3f}, {high:.3f}] |"
            )


def compare(tool: Path, f16: Path, text: Calibration, ours: Path, folder: Path) -> None:
    """Print how far ours is from what llama-imatrix makes of the same text."""
    (folder / "text.txt").write_text(text.text, encoding="utf-8")
    theirs = folder / "theirs.gguf"
    subprocess.run(
        [tool, "-m", f16, "-f", folder / "text.txt", "-o", theirs, "-c", "512", "-b", "512",
         "--chunks", str(text.chunks), "--parse-special", "--no-ppl"], check=True, capture_output=True,
    )  # fmt: skip
    mine, other = read_imatrix(ours).weights, read_imatrix(theirs).weights
    assert mine.keys() == other.keys(), "not the same weights"
    differences = np.concatenate([np.abs(mine[name] - other[name]) / np.abs(other[name]) for name in mine])
    print(
        f"{len(mine)} weights as llama-imatrix has them; relative difference of an entry: median "
        f"{np.median(differences):.1e}, 99.9 % {np.quantile(differences, 0.999):.1e}, largest {differences.max():.1e}\n"
    )


if __name__ == "__main__":
    main()
