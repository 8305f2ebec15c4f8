"""Trainings that are killed, starved, stopped and started twice, as commands in processes of their own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gladstone.artifacts import check_files, read_manifest
from tests.families import write_family
from tests.faults.forked import Server
from tests.faults.kill_training import outcome
from tests.tiny_models import tiny_recipe, write_rows_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="fork, /proc and limits")]

STEPS = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A short training with dropout, accumulation, validations and a checkpoint at every second step."""
    folder = tmp_path_factory.mktemp("recipe")
    training = {
        "max_steps": STEPS, "checkpoint_steps": 2, "batch_size": 2, "accumulation": 2, "batch_tokens": 160,
        "evaluations": 2, "schedule": "cosine",
    }  # fmt: skip
    base, rows = write_family("llama3", folder / "base"), write_rows_file(folder / "rows.jsonl")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(base, rows, lora={"dropout": 0.1}, training=training)))
    return path


@pytest.fixture(scope="module")
def unbroken(recipe: Path, server: Server) -> tuple[list[dict[str, Any]], bytes, dict[str, Any]]:
    out = recipe.parent / "unbroken"
    code, _, told = server.run("run", recipe, "--out", out)
    assert code == 0, told
    return outcome(out)


@pytest.fixture(scope="module")
def stopped(recipe: Path, server: Server) -> Path:
    """A run that was stopped after six steps."""
    out = recipe.parent / "stopped"
    code, printed, told = server.run("run", recipe, "--out", out, "--max-steps", 6)
    assert code == 0, told
    assert printed.startswith("Stopped by --max-steps 6 after 6 steps, ")
    return out


def stopped_copy(stopped: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    return out


def error_of(result: tuple[int, str, str]) -> str:
    """The one message of a command that fails."""
    code, printed, told = result
    assert code == 1, (printed, told)
    assert printed == ""
    assert "Traceback" not in told
    return told[told.index("Error: ") :]


@pytest.mark.long
def test_killed_at_random_moments_every_run_ends_as_the_unbroken_one() -> None:
    script = [sys.executable, "-m", "tests.faults.kill_training", "--times", "8", "--seed", "3"]
    found = subprocess.run(script, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"8 kills over \d+ runs \(.*\) in \d+ s:\nevery run ended", found.stdout)


@pytest.mark.parametrize(
    "harm", ["checkpoint", "metrics missing", "metrics cut", "metrics of nonsense", "leftovers", "lock of a dead one"]
)
def test_damage_to_a_stopped_run_is_told_and_does_not_change_its_end(
    server: Server, recipe: Path, stopped: Path, unbroken: tuple[Any, ...], tmp_path: Path, harm: str
) -> None:
    out = stopped_copy(stopped, tmp_path)
    folder = out / "checkpoints"
    if harm == "checkpoint":
        (folder / "step-00000006" / "trained.safetensors").write_bytes(b"nonsense")
    elif harm == "metrics missing":
        (folder / "metrics.jsonl").unlink()
    elif harm == "metrics cut":
        (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:99])
    elif harm == "metrics of nonsense":
        (folder / "metrics.jsonl").write_bytes(b"\xff[[[")
    else:
        shutil.copytree(folder / "step-00000006", folder / ".step-00000008.1.partial")
        shutil.copytree(folder / "step-00000006", out / ".adapter.partial")
        (out / "adapter").mkdir()
        (out / "adapter" / "half.safetensors").write_bytes(b"")
    code, _, told = server.run("run", recipe, "--out", out, "--resume")
    assert code == 0, told
    wanted = (
        rf"Reading the newest checkpoint: done in .* s  step-00000006 is damaged and is skipped: {folder}/.*: 8 bytes, "
        r".*; resuming after step 5\n"
        if harm == "checkpoint"
        else r"Reading the newest checkpoint: done in .* s  resuming after step 6\n"
    )
    assert re.search(wanted, told)
    assert outcome(out) == unbroken
    check_files(out, read_manifest(out))
    assert not list(out.rglob("*.partial"))
    assert not (out / "adapter" / "half.safetensors").exists()


def test_a_run_without_a_whole_checkpoint_is_refused(
    server: Server, recipe: Path, stopped: Path, tmp_path: Path
) -> None:
    out = stopped_copy(stopped, tmp_path)
    saved = sorted((out / "checkpoints").glob("step-*"))
    for path in saved:
        (path / "manifest.json").unlink()
    message = error_of(server.run("run", recipe, "--out", out, "--resume"))
    headline = f"Error: {out}/checkpoints: all checkpoints are damaged. Remove this folder to start again"
    assert message.startswith(f"{headline} ({len(saved)} problems):\n  - {saved[-1]}: not finished (no manifest.json)")
    assert sorted((out / "checkpoints").glob("step-*")) == saved


def test_a_damaged_best_checkpoint_is_told_and_the_last_step_can_be_had(
    server: Server, recipe: Path, stopped: Path, tmp_path: Path
) -> None:
    out = stopped_copy(stopped, tmp_path)
    best = out / "checkpoints" / "step-00000005"
    before = (
        "import finetune.train.loop as l\n"
        "from finetune.monitor.metrics_log import History\n"
        "History.best = property(lambda self: (5, 0.1) if self.validation else None)\n"
    )
    (best / "trained.safetensors").write_bytes(b"")
    message = error_of(server.run("run", recipe, "--out", out, "--resume", before=before))
    assert re.search(
        r"Error: the checkpoint of step 5, the best one, is damaged: .*trained\.safetensors: 0 bytes, .* "
        r"To keep the last step's adapter, resume with --resume --set training\.final=last\.\n",
        message,
    )
    again = server.run("run", recipe, "--out", out, "--resume", "--set", "training.final=last", before=before)
    assert again[0] == 0, again


def test_a_second_process_in_the_same_folder_is_refused_and_the_first_goes_on(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = server.start("run", recipe, "--out", out)
    first.wait_until((out / "train.log").exists)
    for options in ((), ("--resume",)):
        message = error_of(server.run("run", recipe, "--out", out, *options))
        assert message == (
            f"Error: {out}: another process is training in this folder. Wait for it, stop it, or choose another "
            "folder with --out.\n"
        )
    assert first.wait() == 0, first.told
    assert outcome(out) == unbroken


def test_a_run_killed_right_behind_its_manifest_is_finished_and_tidied_up(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(recipe.parent / "unbroken", out)
    (out / "checkpoints" / "step-00000010").mkdir(parents=True)
    message = error_of(server.run("run", recipe, "--out", out, "--resume"))
    assert message.startswith(f"Error: {out}: already holds a finished run. ")
    assert not (out / "checkpoints").exists()
    assert outcome(out) == unbroken


def test_a_folder_that_cannot_be_written_to_is_told(server: Server, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_of(server.run("run", recipe, "--out", tmp_path / "file" / "out"))
    assert message.startswith(f"Error: {tmp_path}/file/out: cannot be written to")
    assert f"{tmp_path}/file is a file, expected a folder" in message


# files of a process may not grow beyond this (what it prints fits): what a full disk does to a write, in the middle of a file
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("room", [6_000, pytest.param(30_000, marks=pytest.mark.long), 60_000])
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_when_there_is_room(
    server: Server, recipe: Path, stopped: Path, unbroken: tuple[Any, ...], tmp_path: Path, room: int
) -> None:
    out = stopped_copy(stopped, tmp_path)
    before = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.parent.name != "checkpoints"}
    # the limit falls when the training begins: the tokenizer's files are larger than a checkpoint's
    full = f"import finetune.train.loop as l; was = l.Loop.run\ndef run(*a):\n {FULL.format(room)}\n return was(*a)\nl.Loop.run = run"
    message = error_of(server.run("run", recipe, "--out", out, "--resume", before=full))
    assert re.search(
        r"Error: .*(the checkpoint of step 8 cannot be saved: .*[Tt]oo large.* It needs \d+\.\d kB, .* are free; earlier "
        r"checkpoints are whole\. Free some space and resume with --resume"
        r"|metrics\.jsonl: cannot be written: .*[Tt]oo large\. .*--resume)",
        message,
    )
    assert {path: path.read_bytes() for path in before} == before
    assert not list(out.rglob("*.partial"))
    code, _, told = server.run("run", recipe, "--out", out, "--resume")
    assert code == 0, told
    assert outcome(out) == unbroken


def repeated(server: Server, recipe: Path, out: Path, *options: Any) -> list[str]:
    """Call with --resume until the run ends; what each call printed."""
    calls: list[str] = []
    while not (out / "manifest.json").is_file():
        code, printed, told = server.run("run", recipe, "--out", out, "--resume", *options)
        assert code == 0, told
        calls.append(printed)
        assert len(calls) < 40, calls
    return calls


@pytest.mark.parametrize(
    ("option", "value", "calls"), [("steps", 1, 10), ("steps", 3, 4), ("tokens", 1, 10), ("tokens", 400, None)]
)
def test_a_run_in_many_calls_ends_as_one_in_a_single_call(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path, option: str, value: int, calls: int | None
) -> None:
    out = tmp_path / "out"
    printed = repeated(server, recipe, out, f"--max-{option}", value)
    assert outcome(out) == unbroken
    # the call that makes the last step finishes the run
    assert calls is None or len(printed) == calls
    assert len(printed) > 2
    for text in printed[:-1]:
        assert re.fullmatch(
            rf"Stopped by --max-{option} {value} after \d+ steps?, \d+ tokens/s; everything is saved\.\n"
            rf"Resume: finetune run --resume --out {re.escape(str(out))}\n",
            text,
        )


def test_a_time_that_the_start_alone_takes_is_told_as_such(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        code, printed, told = server.run("run", recipe, "--out", out, "--resume", "--max-hours", 0.00001)
        assert code == 0, told
        assert printed == (
            "Stopped by --max-hours 1e-05, which loading and measuring took up, before the first step.\n"
            f"Resume: finetune run --resume --out {out}\n"
        )
    code, _, told = server.run("run", recipe, "--out", out, "--resume")
    assert code == 0, told
    assert outcome(out) == unbroken


SLOW_STEPS = "import time, finetune.train.loop as l; was = l.Loop._attempt\ndef slow(*a):\n time.sleep(0.6)\n return was(*a)\nl.Loop._attempt = slow"


def test_max_hours_stops_before_the_time_is_over_and_leaves_time_for_the_end(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, told = server.run("run", recipe, "--out", out, "--max-hours", 5.4 / 3600, before=SLOW_STEPS)
    assert code == 0, told
    stopped = re.match(r"Stopped by --max-hours 0\.0015(, .*,)? (after \d+ steps|before the first)", printed)
    assert stopped, printed
    code, _, told = server.run("run", recipe, "--out", out, "--resume")
    assert code == 0, told
    assert outcome(out) == unbroken


def test_where_the_time_is_too_short_to_measure_and_save_the_end_the_next_call_does_that(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = "import finetune.train.session as r; r.PLOTTING_S = 3600.0"
    code, printed, told = server.run("run", recipe, "--out", out, "--max-hours", 0.5, before=before)
    assert code == 0, told
    assert printed.startswith(
        f"Stopped by --max-hours 0.5, not enough time left to evaluate and save, after {STEPS} steps, "
    )
    assert not (out / "adapter").exists()
    code, printed, told = server.run("run", recipe, "--out", out, "--resume", "--max-hours", 0.5)
    assert code == 0, told
    assert outcome(out) == unbroken


# of memory that does not suffice: the forward pass of a training step fails above so many tokens
STARVED = """
import torch
from finetune.model.loss import PackedForward
loss = PackedForward.loss
def starved(self, batch, divisor):
    found = loss(self, batch, divisor)
    if batch.tokens > {tokens} and {where}:
        raise {error}
    return found
PackedForward.loss = starved
"""
TORCH_ERROR = 'torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")'
CPU_ERROR = 'RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes.")'


@pytest.mark.parametrize("error", [TORCH_ERROR, CPU_ERROR, "MemoryError()"])
def test_a_step_that_does_not_fit_is_made_in_smaller_pieces_told_and_recorded(
    server: Server, recipe: Path, tmp_path: Path, error: str
) -> None:
    no_dropout = ("--set", "lora.dropout=0.0")  # what is dropped depends on how a step is cut
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert server.run("run", recipe, "--out", whole, *no_dropout)[0] == 0
    before = STARVED.format(tokens=100, where="torch.is_grad_enabled()", error=error)
    code, printed, told = server.run("run", recipe, "--out", out, *no_dropout, before=before)
    assert code == 0, told
    events = read_manifest(out).facts["events"]
    assert events
    assert all(event["kind"] == "out of memory" for event in events)
    assert [event["batch_tokens"] for event in events] == sorted({event["batch_tokens"] for event in events})[::-1]
    assert printed.startswith(
        "".join(
            f"Note: memory did not suffice in step {event['step']}: from there on a micro-batch has at most "
            f"{event['batch_tokens']} tokens.\n"
            for event in events
        )
        + "Held-out loss "
    )
    steps = [[line for line in outcome(folder)[0] if line["kind"] == "step"] for folder in (whole, out)]
    for expected, found in zip(*steps, strict=True):
        assert found["loss_nats_per_token"] == pytest.approx(expected["loss_nats_per_token"], abs=2e-5)
        assert found["tokens"] == expected["tokens"]
    assert steps[1][0]["loss_nats_per_token"] == pytest.approx(steps[0][0]["loss_nats_per_token"], abs=1e-6)


def test_a_run_short_of_memory_goes_on_with_the_smaller_pieces_that_it_had(
    server: Server, recipe: Path, tmp_path: Path
) -> None:
    before = STARVED.format(tokens=100, where="torch.is_grad_enabled()", error=TORCH_ERROR)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert server.run("run", recipe, "--out", whole, before=before)[0] == 0
    assert server.run("run", recipe, "--out", out, "--max-steps", 5, before=before)[0] == 0
    assert server.run("run", recipe, "--out", out, "--resume", before=before)[0] == 0
    assert outcome(out) == outcome(whole)


def test_a_single_row_that_does_not_fit_is_refused(server: Server, recipe: Path, tmp_path: Path) -> None:
    before = STARVED.format(tokens=8, where="torch.is_grad_enabled()", error=TORCH_ERROR)
    message = error_of(server.run("run", recipe, "--out", tmp_path / "out", before=before))
    assert re.fullmatch(
        r"Error: out of memory in step 1 with a single row of \d+ tokens\. Set training\.gradient_checkpointing=on or "
        r"base\.load_in_4bit=true, or lower base\.max_tokens\.\n",
        message,
    )


def test_an_evaluation_short_of_memory_does_not_shrink_the_training(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = STARVED.format(
        tokens=100, where="not torch.is_grad_enabled() and not self._body.training", error=TORCH_ERROR
    )
    code, printed, told = server.run("run", recipe, "--out", out, before=before)
    assert code == 0, told
    assert printed.startswith("Held-out loss ")
    assert read_manifest(out).facts["events"] == []
    steps = [[line for line in lines if line["kind"] == "step"] for lines in (outcome(out)[0], unbroken[0])]
    assert steps[0] == steps[1]


# the memory of a process may grow by no more than this from the first step on: real allocations fail
SHORT = """
import resource
import finetune.train.loop as l
was = l.Loop.run
def run(*arguments):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + {room}, -1))
    return was(*arguments)
l.Loop.run = run
"""


@pytest.mark.long
def test_memory_that_really_ends_makes_the_pieces_smaller_and_leaves_the_losses(
    server: Server, recipe: Path, tmp_path: Path
) -> None:
    # half a gigabyte for a step: far more than the heap keeps of what came before it
    rows = [{"question": f"Number {n}?", "answer": "the heart " * 420} for n in range(40)]
    data = write_rows_file(tmp_path / "long.jsonl", rows)
    options = ("--data", data, "--set", "data.cleaning.max_chars=5000", "--set", "base.max_tokens=1024", "--set",
               "lora.dropout=0.0", "--set", "training.max_steps=4", "--set", "training.batch_tokens=32000", "--set", "training.batch_size=16")  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    code, _, told = server.run("run", recipe, "--out", whole, *options)
    assert code == 0, told
    for room in (8_000_000, 16_000_000, 32_000_000, 64_000_000):  # what a row takes besides differs: threads, arenas
        code, printed, told = server.run("run", recipe, "--out", out, *options, before=SHORT.format(room=room))
        if code == 0:
            break
    assert code == 0, told
    assert "Note: memory did not suffice in step " in printed  # in which one depends on what the heap kept
    assert read_manifest(whole).facts["events"] == []
    losses = [
        [line["loss_nats_per_token"] for line in outcome(folder)[0] if line["kind"] == "step"]
        for folder in (whole, out)
    ]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_single_row_whose_loss_cannot_be_measured_is_refused(server: Server, recipe: Path, tmp_path: Path) -> None:
    before = STARVED.format(
        tokens=45, where="not torch.is_grad_enabled() and not self._body.training", error=TORCH_ERROR
    )
    message = error_of(server.run("run", recipe, "--out", tmp_path / "out", before=before))
    assert re.match(r"Error: out of memory while measuring the loss of a single row of \d+ tokens\. Set ", message)


def test_an_update_that_does_not_fit_is_no_step_to_be_made_again(server: Server, recipe: Path, tmp_path: Path) -> None:
    before = "import torch\ndef full(*a, **k): raise torch.OutOfMemoryError('CUDA out of memory')\ntorch.optim.AdamW.step = full"
    message = error_of(server.run("run", recipe, "--out", tmp_path / "out", before=before))
    assert message.startswith("Error: out of memory in the update of step 1. Lower lora.rank, or choose an optimizer")


def test_damaged_weights_of_the_base_are_told_before_the_first_step(
    server: Server, recipe: Path, tmp_path: Path
) -> None:
    before = "from finetune.train import evaluation\nimport finetune.train.session as r\nreal = r.load_trainable\ndef spoilt(*a):\n    made = real(*a)\n    next(made.model.parameters()).data.fill_(float('nan'))\n    return made\nr.load_trainable = spoilt"
    message = error_of(server.run("run", recipe, "--out", tmp_path / "out", before=before))
    assert re.fullmatch(
        r"Error: the held-out loss is nan: the model does not compute probabilities for .*/rows\.jsonl:\d+.*\. Are its "
        r"weights damaged\?\n",
        message,
    )


def test_a_gradient_that_is_not_finite_names_the_rows_of_its_step(server: Server, recipe: Path, tmp_path: Path) -> None:
    before = "import torch\nreal = torch.nn.utils.clip_grad_norm_\ntorch.nn.utils.clip_grad_norm_ = lambda p, m: real(p, m) * float('nan')"
    out = tmp_path / "out"
    message = error_of(server.run("run", recipe, "--out", out, before=before))
    named = re.fullmatch(
        r"Error: the gradient of step 1 is nan: lower training\.learning_rate, or look at its rows: (.*)\.\n", message
    )
    assert named
    rows = named.group(1).split(", ")
    assert len(rows) == 4
    assert all(re.fullmatch(rf"{re.escape(str(recipe.parent))}/rows\.jsonl:\d+", row) for row in rows)


@pytest.mark.parametrize("moment", ["load_trainable", "measure_loss"])
def test_ctrl_c_before_the_first_step_leaves_nothing_half(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path, moment: str
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    child = server.start("run", recipe, "--out", out, before=slowed(f"finetune.train.session:{moment}", mark))
    child.wait_until(mark.exists).send(signal.SIGINT)
    assert child.wait() == 130, child.told
    assert "Traceback" not in child.told
    if moment == "load_trainable":
        assert child.told.endswith("\nStopped. The same command again finishes the work.\n")
        options: tuple[str, ...] = ()
    else:
        assert child.printed.startswith("Stopped by Ctrl-C before the first step.\nResume: finetune run --resume ")
        options = ("--resume",)
    code, _, told = server.run("run", recipe, "--out", out, *options)
    assert code == 0, told
    assert outcome(out) == unbroken


def slowed(call: str, mark: Path, times: int = 1, seconds: float = 2) -> str:
    """Make the `times`-th call of a function touch `mark` and wait, before it does its work."""
    module, name = call.split(":")
    owner, _, attribute = name.rpartition(".")
    return f"""
import importlib, pathlib, time
owner = importlib.import_module({module!r})
owner = getattr(owner, {owner!r}) if {owner!r} else owner
real, count = getattr(owner, {attribute!r}), [0]
def slow(*arguments, **named):
    count[0] += 1
    if count[0] == {times}:
        pathlib.Path({str(mark)!r}).touch()
        end = time.monotonic() + {seconds}
        while time.monotonic() < end:
            time.sleep(0.01)
    return real(*arguments, **named)
setattr(owner, {attribute!r}, slow)
"""


MOMENTS = {
    "a step": ("finetune.train.loop:Loop._attempt", 3),
    "a validation": ("finetune.train.evaluation:measure_loss", 1),
    "a checkpoint": ("finetune.train.checkpoint:write_manifest", 2),
    "the end's measurement": ("finetune.train.session:measure_loss", 2),
}


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), pytest.param(signal.SIGTERM, "SIGTERM", 143, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_the_training_stops_it_saved(
    server: Server,
    recipe: Path,
    unbroken: tuple[Any, ...],
    tmp_path: Path,
    moment: str,
    number: int,
    name: str,
    code: int,
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    call, times = MOMENTS[moment]
    child = server.start("run", recipe, "--out", out, before=slowed(call, mark, times, seconds=0.5))
    child.wait_until(mark.exists).send(number)
    assert child.wait() == code, child.told
    assert "Traceback" not in child.told
    assert re.match(
        rf"Stopped by {name} after \d+ steps?, \d+ tokens/s; everything is saved\.\nResume: ", child.printed
    )
    assert not list(out.rglob("*.partial"))
    assert not (out / "adapter").exists()
    again = server.run("run", recipe, "--out", out, "--resume")
    assert again[0] == 0, again
    assert outcome(out) == unbroken


def test_a_signal_while_the_adapter_is_saved_does_not_stop_the_last_second_of_the_work(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    child = server.start(
        "run", recipe, "--out", out, before=slowed("finetune.train.session:_save_adapter", mark, seconds=0.5)
    )
    child.wait_until(mark.exists).send(signal.SIGINT)
    assert child.wait() == 0, child.told
    assert outcome(out) == unbroken


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_from_its_checkpoint(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path, moment: str
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    call, times = MOMENTS[moment]
    child = server.start("run", recipe, "--out", out, before=slowed(call, mark, times, seconds=3600))
    child.wait_until(mark.exists).send(signal.SIGINT)
    time.sleep(0.3)
    child.send(signal.SIGINT)
    assert child.wait() == 130, child.told  # it would wait for an hour for the work
    assert "Traceback" not in child.told
    assert child.told.endswith(
        f"\nStopped at once. Resume from the newest checkpoint: finetune run --resume --out {out}\n"
    )
    assert not (out / "adapter").exists()
    for folder in (out / "checkpoints").glob("step-*"):
        check_files(folder, read_manifest(folder))
    again = server.run("run", recipe, "--out", out, "--resume")
    assert again[0] == 0, again
    assert outcome(out) == unbroken


def test_sigterm_while_loading_ends_the_process_and_leaves_nothing_half(
    server: Server, recipe: Path, unbroken: tuple[Any, ...], tmp_path: Path
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    child = server.start("run", recipe, "--out", out, before=slowed("finetune.train.session:load_trainable", mark))
    child.wait_until(mark.exists).send(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not (out / "manifest.json").exists()
    assert not list((out / "data").glob(".*"))
    assert json.loads((out / "tokenizer" / "tokenizer.json").read_text())
    code, _, told = server.run("run", recipe, "--out", out)
    assert code == 0, told
    assert outcome(out) == unbroken


NO_4_BIT = "import unsloth_zoo.cpu.loader as l; l.cpu_bnb_4bit_supported = lambda *a: False"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_where_4_bit_does_not_work_the_base_is_not_held_in_16_bit_unasked(
    server: Server, recipe: Path, tmp_path: Path
) -> None:
    options = ("--out", tmp_path / "out", "--set", "base.load_in_4bit=true")
    message = error_of(server.run("run", recipe, *options, before=NO_4_BIT))
    assert re.match(r"Error: .*/base cannot be loaded in 4 bit here: .* Set base\.load_in_4bit=false\.\n", message)


def test_a_template_whose_tokens_the_vocabulary_lacks_is_refused(server: Server, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    options = ("--out", tmp_path / "out", "--set", f"base.chat_template={tmp_path}/chatml.jinja")
    message = error_of(server.run("run", recipe, *options))
    assert message.startswith(
        "Error: base.chat_template: it names <|im_end|>, <|im_start|>, which the base's vocabulary lacks: "
    )
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_rows_that_have_changed_are_refused_with_all_that_differs(
    server: Server, recipe: Path, stopped: Path, tmp_path: Path
) -> None:
    out = stopped_copy(stopped, tmp_path)
    other = write_rows_file(
        tmp_path / "rows.jsonl", [{"question": f"Number {n}?", "answer": "Yes."} for n in range(40)]
    )
    options = ("--data", other, "--set", "lora.rank=4", "--set", "training.checkpoint_steps=7")
    message = error_of(server.run("run", recipe, "--out", out, "--resume", *options))
    assert message.startswith(f"Error: {out}: the run was started with other settings and cannot resume with these. ")
    for told in ("lora.rank: 8 before, 4 now", "data.sources: ", "rows:train has changed"):
        assert f"\n  - {told}" in message
    assert "checkpoint_steps" not in message
