"""Kills exports with SIGKILL at random moments, calls them again, and compares with unbroken ones.

python -m tests.faults.kill_export --times 100 --seed 0

After each kill no file under a final name may differ from the unbroken export's; in the end all are there, and nothing
else. The proof is left out: it writes nothing, and each call makes it anew.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gladstone.artifacts import check_files, read_manifest, sha256_file
from tests.export.tiny_runs import write_run
from tests.faults.killing import Victim, kill_often
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


class Export(Victim):
    """A command on a tiny run, and what it makes unbroken."""

    cli = "export.cli"
    repeated = PHASES[1:5]

    def __init__(self, name: str, work: Path, run: Path, expected: set[tuple[str, str]]) -> None:
        """`expected` are the files of all commands: what one keeps, another has for a moment."""
        super().__init__(name, work, PHASES)
        self.run, self.expected = run, expected
        out = work / f"unbroken-{name}"
        self.run_unbroken(out)
        expected |= {(path.name, sha256_file(path)) for path in weights(out)}
        self.all = {path.name for path in out.iterdir()}
        shutil.rmtree(out)

    def arguments(self, out: Path) -> list[str]:
        command, *options = COMMANDS[self.name]
        return [command, str(self.run), "--out", str(out), *options]

    def trace(self) -> None:
        """The proof is left out."""
        import export.build
        import export.pipeline
        import export.safetensors_pipeline
        from export.proof.heldout import HeldOut

        unproven: dict[str, Any] = {
            "verify_file": lambda *_, **__: [],
            "check_quantised": lambda *_: ({}, HeldOut((1.0,), (1,))),
            "held_out_loss": lambda *_: HeldOut((1.0,), (1,)),
        }
        for name, nothing in unproven.items():
            setattr(export.build, name, nothing)
        phase = self.phase
        phase.name = "beginning"
        phase.wrap(export.safetensors_pipeline, "write_shard", "merging")
        phase.wrap(export.safetensors_pipeline, "_manifest", "finishing")
        phase.wrap(export.build, "convert", "converting")
        phase.wrap(export.build, "write_lora", "converting")
        phase.wrap(export.build, "compute_imatrix", "writing the matrix")
        phase.wrap(export.build, "quantise", "quantising")
        phase.wrap(export.build, "split_gguf", "splitting")
        phase.wrap(export.pipeline, "_finish", "finishing")

    def look(self, out: Path, kills: Counter[str]) -> bool:
        for path in weights(out):
            if (path.name, sha256_file(path)) not in self.expected:
                sys.exit(f"after {dict(kills)} {path} is not as the unbroken {self.name} makes it")
        if (out / "manifest.json").is_file():
            check_files(out, read_manifest(out))
        return False  # another call finds all made, and says so

    def compare(self, out: Path, kills: Counter[str]) -> None:
        found = {path.name for path in out.iterdir()}
        if found - {*OWN} != self.all - {*OWN} or OWN[1] in found:
            sys.exit(f"after {dict(kills)} {out} holds {sorted(found)}, expected {sorted(self.all)}")


def weights(out: Path) -> list[Path]:
    """The files under a final name whose bytes depend on nothing but the run."""
    return [path for path in out.glob("[!.]*") if path.suffix in (".gguf", ".safetensors")]


def exports(work: Path) -> list[Export]:
    """Every command, on one run."""
    run = write_run(work / "run", write_model(work / "base"))
    expected: set[tuple[str, str]] = set()
    return [Export(name, work, run, expected) for name in COMMANDS]


if __name__ == "__main__":
    kill_often(__doc__, exports, "exports")
    print("never a half file under a final name, and every export ended with the bytes of the unbroken one.")
