import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from export.cli import main as export_main
from finetune.cli import main
from finetune.config.load import load_recipe
from gladstone.artifacts import check_files, read_manifest
from gladstone.chat.template import template_sha256
from gladstone.formats import read_conversations
from tests.finetune.sweeps import finetune_command
from tests.stopped import wait_until
from tests.tiny_models import tiny_recipe, write_rows_file
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("warm_children")


def write_recipe(folder: Path, base: Path, **sections: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    rows = write_rows_file(folder / "rows.jsonl")
    path.write_text(yaml.safe_dump(tiny_recipe(base, rows, **sections)))
    return path


def finetune(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Result]:
    """A whole run on 40 rows, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    out = folder / "out"
    result = finetune("run", write_recipe(folder, tiny_base), "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def test_a_finished_run_holds_exactly_the_files_of_its_manifest(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    manifest = read_manifest(out)
    check_files(out, manifest)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {record.path for record in manifest.files} | {"manifest.json", "train.log"}
    assert found >= {
        "recipe.yaml", "chat_template.jinja", "metrics.jsonl", "loss.png", "data/train.jsonl", "data/validation.jsonl",
        "data/test.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
    }  # fmt: skip


def test_the_manifest_is_the_newest_file(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    others = [path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert (out / "manifest.json").stat().st_mtime_ns >= max(others)


def test_the_manifest_tells_what_went_in_and_what_came_out(finished: tuple[Path, Result], tiny_base: Path) -> None:
    out, result = finished
    manifest = read_manifest(out)
    facts = manifest.facts
    assert manifest.stage == "finetune"
    assert manifest.config["base"]["model"] == str(tiny_base)
    assert facts["rows"] == {"train": 32, "validation": 4, "test": 4}
    assert facts["steps"] == 4
    assert facts["held_out_loss_after"] < facts["held_out_loss_before"]
    assert manifest.template_sha256 == template_sha256((out / "chat_template.jinja").read_text())
    assert {"base", f"data:{out.parent / 'rows.jsonl'}"} == manifest.parents.keys()
    assert manifest.versions.keys() >= {"gladstone", "python", "torch", "unsloth", "trl", "peft"}
    assert f"{facts['held_out_loss_before']:.3f} → {facts['held_out_loss_after']:.3f}" in result.output


def test_metrics_hold_every_step_and_the_validation_losses(finished: tuple[Path, Result]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["step"] for line in validation] == [2, 4]
    assert len(lines) == 6
    assert all(line["target_tokens"] < line["tokens"] and 0 <= line["padding_share"] < 1 for line in steps)


def test_the_recipe_in_the_run_folder_loads_back_equal(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    assert load_recipe(str(out / "recipe.yaml"), []) == load_recipe(str(out.parent / "tiny.yaml"), [])


def test_the_adapter_names_its_base_as_the_recipe_does(finished: tuple[Path, Result], tiny_base: Path) -> None:
    config = json.loads((finished[0] / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)


def test_the_sets_in_the_run_folder_are_all_rows_and_disjoint(finished: tuple[Path, Result]) -> None:
    sets = [
        {row.messages for row in read_conversations(finished[0] / "data" / f"{name}.jsonl", "messages")}
        for name in ("train", "validation", "test")
    ]
    assert [len(rows) for rows in sets] == [32, 4, 4]
    assert len(set.union(*sets)) == 40


def test_the_tokenizer_is_copied_byte_for_byte(finished: tuple[Path, Result], tiny_base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (finished[0] / "tokenizer" / name).read_bytes() == (tiny_base / name).read_bytes()


def test_the_loss_curve_is_a_picture(finished: tuple[Path, Result]) -> None:
    assert (finished[0] / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_shows_its_steps_its_losses_and_the_next_command(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert re.fullmatch(
        r"Held-out loss \d+\.\d{3} → \d+\.\d{3} nats per answer token \(4 rows, 4 steps, \d+ tokens/s\)\.\n"
        r"Time: data \d+%, step \d+%, evaluation \d+%, saving \d+%\n"
        rf"Run folder: {re.escape(str(out))}\n"
        rf"Next: gladstone export gguf {re.escape(str(out))} --quant q8_0 --quant q4_k_m\n",
        result.stdout,
    )
    assert re.search(r"Training: done in .* step 4/4  loss \d", result.stderr)
    assert "WARNING: " not in result.stdout
    assert "Unsloth" not in result.output


def opening_lines(shown: str) -> dict[str, str]:
    """The opening block by its first column."""
    block = shown[shown.index("Run of ") :].split("\nMeasuring the held-out loss", maxsplit=1)[0]
    return {line[:10].strip(): line[10:].strip() for line in block.splitlines()[1:]}


def test_a_run_begins_with_one_block_that_says_what_it_will_do(finished: tuple[Path, Result], tiny_base: Path) -> None:
    out, result = finished
    lines = opening_lines(result.stderr)
    assert lines["read"].startswith("40  ")
    assert "train 32, validation 4, test 4" in lines["written"]
    assert re.fullmatch(r"32  rows; scored are 32 turns, \d{3} of 1,\d{3} tokens \(\d\d%\)", lines["to train"])
    assert lines["steps"] == "4  of 4 rows: 16 rows, 0.5 of an epoch"
    assert lines["base"].startswith(str(tiny_base))
    assert "cpu in " in lines["device"]
    assert "at the peak" in lines["memory"]
    assert lines["time"].startswith("about ")
    assert lines["folder"] == str(out)
    assert "only 16 of 32 rows are trained: training.max_steps=4" in result.stderr
    assert "32 rows are few to train on" in result.stderr
    assert "4 validation and 4 test rows are too few" in result.stderr
    log = (out / "train.log").read_text()
    assert opening_lines(log[log.index("Run of ") :]).items() >= lines.items() - {("WARNING", lines["WARNING"])}


def test_a_call_that_stops_early_and_one_that_goes_on_say_so(tmp_path: Path, tiny_base: Path) -> None:
    recipe, out = write_recipe(tmp_path, tiny_base), tmp_path / "out"
    first = finetune("run", recipe, "--out", out, "--max-steps", 1, "--set", "training.epochs=1")
    lines = opening_lines(first.stderr)
    assert lines["steps"] == "8  of 4 rows: 32 rows, 1 epoch"
    assert lines["limit"] == "this call stops after 1 step; --resume continues"
    assert "training.max_steps=4 of recipe tiny.yaml is not used" in lines["note"]
    again = finetune("run", "--resume", "--out", out, "--max-steps", 1)
    assert opening_lines(again.stderr)["resumed"] == "1  step done, 7 remaining"


def test_the_first_steps_measure_the_time_that_was_computed_and_tell_it_once(tmp_path: Path, tiny_base: Path) -> None:
    recipe, out = write_recipe(tmp_path, tiny_base), tmp_path / "out"
    shown = finetune("run", recipe, "--out", out, "--max-steps", 7, "--set", "training.epochs=1").stderr
    assert opening_lines(shown)["time"].endswith("(computed; the first 6 steps measure it)")
    line = r"(?m)^time      about \d+ s for the remaining 2 steps .* measured: (\d+\.\d) s per step over steps 2 to 6; "
    (step_s,) = re.findall(line, shown)
    (in_log,) = re.findall(line, (out / "train.log").read_text())
    assert in_log == step_s
    steps = [json.loads(each) for each in (out / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    taken = [each for each in steps if each["kind"] == "step"][1:6]
    rate = sum(each["step_s"] for each in taken) / sum(each["tokens"] for each in taken)
    assert float(step_s) == pytest.approx(rate * sum(each["tokens"] for each in taken) / 5, abs=0.06, rel=0.3)
    again = finetune("run", "--resume", "--out", out, "--max-steps", 1).stderr
    assert "by the time of those done" in opening_lines(again)["time"]
    assert not re.findall(line, again)


def test_rows_left_out_are_a_warning_from_a_fifth_on(tmp_path: Path, tiny_base: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_base)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n" * 2 + "no row\n" * 12)
    shown = finetune("run", recipe, "--skip-bad", "--out", tmp_path / "out", "--max-steps", 1).stderr
    assert re.search(r"WARNING +13 of 53 rows \(25%\) are dropped; .*dropped\.jsonl", shown)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Result]:
    """A run whose learning rate is far too high."""
    folder = tmp_path_factory.mktemp("spoiled")
    training = {"learning_rate": 50.0, "max_steps": 2, "evaluations": 1, "final": "last"}
    result = finetune("run", write_recipe(folder, tiny_base, training=training), "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out", result


def test_a_run_that_made_the_model_worse_ends_with_a_warning_in_place_of_the_next_step(
    spoiled: tuple[Path, Result],
) -> None:
    out, result = spoiled
    assert "Next:" not in result.stdout
    *_, warning, advice, refusal = result.stdout.splitlines()
    assert warning.startswith("WARNING: the model is worse than before training")
    assert "training.learning_rate" in advice
    assert "--yes" in refusal
    first = read_manifest(out).facts["warnings"][0]
    assert first.keys() == {"kind", "text", "serious", "figures"}
    assert (first["kind"], first["serious"]) == ("worse than before", True)
    assert first["figures"]["after"] > first["figures"]["before"]


def test_its_export_is_refused_with_the_reason_unless_the_user_says_yes(
    spoiled: tuple[Path, Result], finished: tuple[Path, Result]
) -> None:
    out, _ = spoiled
    for command in (["gguf"], ["lora"], ["merge"]):
        refused = CliRunner().invoke(export_main, [*command, str(out)])
        assert refused.exit_code == 1
        assert "the model is worse than before training" in refused.stderr
        assert "--yes" in refused.stderr
    assert {path.name for path in out.iterdir()}.isdisjoint({"gguf", "lora", "merged"})
    accepted = CliRunner().invoke(export_main, ["merge", str(out), "--yes"])
    assert accepted.exit_code == 0, accepted.output
    other = CliRunner().invoke(export_main, ["merge", str(finished[0]), "--adapter", f"{out / 'adapter'}=0.5"])
    assert other.exit_code == 1
    assert "the model is worse than before training" in other.stderr
    warnings = read_manifest(out / "merged").facts["training_warnings"]
    assert any("worse than before" in each for each in warnings)


def test_a_finished_folder_is_refused_and_left_as_it_is(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = finetune("run", out.parent / "tiny.yaml", "--out", out)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {out}: already holds a finished run. Choose another folder with --out, or remove this one.\n"
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_same_recipe_trains_the_same_adapter(finished: tuple[Path, Result], tmp_path: Path) -> None:
    result = finetune("run", finished[0].parent / "tiny.yaml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    first, again = (read_manifest(folder).facts["held_out_loss_after"] for folder in (finished[0], tmp_path / "again"))
    assert again == pytest.approx(first, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_stops_the_run_saved_and_it_goes_on_to_the_same_losses(
    tmp_path: Path, tiny_base: Path, number: signal.Signals, name: str, code: int
) -> None:
    recipe = write_recipe(tmp_path, tiny_base, training={"max_steps": 40})
    out = tmp_path / "out"
    child = subprocess.Popen(
        finetune_command("run", recipe, "--out", out, python=sys.executable),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(partial(steps_are_made, out), child)
    child.send_signal(number)
    printed, errors = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == code, errors
    assert re.match(rf"Stopped by {name} after \d+ steps?, \d+ tokens/s; everything is saved\.\nResume: ", printed)
    check_no_half_files(out)
    refused = finetune("run", recipe, "--out", out)
    assert refused.exit_code == 1
    assert re.search(r"holds a run that was stopped after step \d+\. Resume it with --resume, ", refused.output)
    again = subprocess.run(printed.splitlines()[-1].replace("Resume: finetune", shlex.join(finetune_command(python=sys.executable))),
                           shell=True, capture_output=True, text=True, check=False)  # fmt: skip
    assert again.returncode == 0, again.stderr
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert manifest.facts["steps"] == 40
    assert not list(out.glob(".*"))
    assert not (out / "checkpoints").exists()
    whole = finetune("run", recipe, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert told(out) == told(tmp_path / "whole")
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (out, tmp_path / "whole")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def told(run: Path) -> list[dict[str, Any]]:
    """The metrics without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "step_s"} for line in lines]


def steps_are_made(out: Path) -> bool:
    """True once the metrics hold a step of the training that is under way."""
    metrics = out / "checkpoints" / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def check_no_half_files(out: Path) -> None:
    """Every file under a final name is whole; what only comes with the training's end is not there."""
    assert not (out / "manifest.json").exists()
    assert not (out / "metrics.jsonl").exists()
    assert not (out / "adapter").exists()
    assert not list(out.rglob(".*.partial"))
    load_recipe(str(out / "recipe.yaml"), [])
    json.loads((out / "tokenizer" / "tokenizer.json").read_text())
    sets = [out / "data" / f"{name}.jsonl" for name in ("train", "validation", "test")]
    assert sum(len(read_conversations(path, "messages")) for path in sets) == 40


def test_nothing_of_a_stopped_run_with_another_base_stays(finished: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("tokenizer/spiece.model", "tokenizer/.tokenizer.json.1.partial", "data/.train.jsonl.1.partial"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of the other base")
    (out / "data" / "mine.txt").write_text("not ours: stays, and is no part of the run")
    result = finetune("run", finished[0].parent / "tiny.yaml", "--out", out, "--set", "training.max_steps=1")
    assert result.exit_code == 0, result.output
    names = {record.path for record in read_manifest(out).files}
    assert names == {record.path for record in read_manifest(finished[0]).files}
    assert {path.name for path in (out / "tokenizer").iterdir()} == {
        path.name for path in (finished[0] / "tokenizer").iterdir()
    }
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        "changed.jsonl", "conflicts.jsonl", "data.json", "dropped.jsonl", "mine.txt", "personal.jsonl", "test.jsonl", "train.jsonl",
        "validation.jsonl",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, tiny_base: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_base, training={"max_steps": 40, "checkpoint_steps": 3})
    out = tmp_path / "out"
    child = subprocess.Popen(
        finetune_command("run", recipe, "--out", out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True
    )
    wait_until((out / "checkpoints" / "step-00000006").exists, child)
    child.kill()
    child.wait()
    result = finetune("run", recipe, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert "resuming after step " in result.output
    check_files(out, read_manifest(out))
    assert not list(out.glob(".*"))
    whole = finetune("run", recipe, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert told(out) == told(tmp_path / "whole")
