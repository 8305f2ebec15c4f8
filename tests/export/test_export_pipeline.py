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
from click.testing import CliRunner, Result

from export.build import better_base
from export.cli import main
from export.proof.heldout import HeldOut
from gladstone.artifacts import check_files, read_manifest
from gladstone.commands.progress import Silent
from gladstone.gguf.header import read_info
from tests.export.tiny_runs import edit_json, finish, write_adapter
from tests.faults.tiny_ggufs import tiny_bpe
from tests.gladstone.gguf_files import Gguf
from tests.gladstone.wrong_files import imatrix, written
from tests.stopped import interrupt
from tests.waiting import PATIENCE_S

PROOF = {"proof.json", "proof.txt", "README.md", "Modelfile"}
FILES = {"tiny-q8_0.gguf", "tiny-q4_k_m.gguf", "tiny-base-q8_0.gguf", "tiny-base-q4_k_m.gguf"}


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return re.sub(r"(?s)^.*?Error: ", "", result.stderr).rstrip("\n")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("gguf"))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("exported") / "gguf"
    result = export("gguf", tiny_run, "--quant", "q8_0", "--quant", "q4_k_m", "--with-base", "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


@pytest.mark.slow
def test_an_export_holds_exactly_the_files_of_its_manifest(exported: tuple[Path, Result]) -> None:
    out, _ = exported
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert {record.path for record in manifest.files} == FILES | PROOF
    assert {path.name for path in out.iterdir()} == FILES | PROOF | {"manifest.json", "export.log"}
    assert manifest.facts["tensor_types"].keys() == FILES


@pytest.mark.slow
def test_an_export_is_tied_to_its_run_and_its_template(exported: tuple[Path, Result], tiny_run: Path) -> None:
    manifest, run = read_manifest(exported[0]), read_manifest(tiny_run)
    assert manifest.template_sha256 == run.template_sha256
    assert manifest.parents["base"] == run.parents["base"]
    for name in FILES:
        info = read_info(exported[0] / name)
        assert info.template_sha256 == run.template_sha256
        assert info.name is not None
        assert info.quantisation in ("Q8_0", "Q4_K_M")


@pytest.mark.slow
def test_the_proof_holds_every_point_of_both_models(exported: tuple[Path, Result]) -> None:
    proof = json.loads((exported[0] / "proof.json").read_text())
    assert proof["passed"] is True
    assert proof["models"].keys() == {"tiny", "tiny-base"}
    for checks in proof["models"].values():
        assert [point["name"] for point in checks] == [
            "vocabulary", "texts", "typed tokens", "special tokens", "chat template", "rendered turns", "prompts", "context",
            "distributions", "greedy answers", "q8_0: metadata", "q4_k_m: metadata", "q8_0", "q4_k_m",
        ]  # fmt: skip
        assert all(point["passed"] and point["measured"] for point in checks)
    assert proof["files"].keys() == FILES


@pytest.mark.slow
def test_the_command_shows_the_proof_the_files_and_the_next_command(exported: tuple[Path, Result]) -> None:
    out, result = exported
    assert result.stdout.count("  passed  ") == 28
    assert "FAILED" not in result.output
    assert all(str(out / name) in result.stdout for name in FILES)
    assert result.stdout.endswith(f"Next: runtime chat {out / 'tiny-q8_0.gguf'}\n")


@pytest.mark.slow
def test_a_second_export_makes_no_whole_file_again(exported: tuple[Path, Result], tiny_run: Path) -> None:
    out, _ = exported
    before = {name: (out / name).stat().st_mtime_ns for name in FILES}
    result = export("gguf", tiny_run, "--quant", "q8_0", "--out", out)
    assert result.exit_code == 0, result.output
    assert {name: (out / name).stat().st_mtime_ns for name in FILES} == before
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert {record.path for record in manifest.files} == FILES | PROOF


@pytest.mark.slow
def test_the_export_of_another_adapter_is_not_put_into_the_same_folder(
    exported: tuple[Path, Result], run: Path, tiny_base: Path
) -> None:
    manifest = read_manifest(run)
    write_adapter(tiny_base, run / "adapter", r=4)
    finish(run, manifest.config, manifest.template_sha256 or "", tiny_base)
    message = refused(export("gguf", run, "--out", exported[0]))
    assert message == f"{exported[0]}: holds the export of another adapter or base. Choose another folder with --out."


@pytest.mark.slow
def test_verify_proves_the_f16_of_a_run_and_refuses_that_of_another(
    f16: Path, tiny_run: Path, run: Path, tiny_base: Path
) -> None:
    result = export("verify", f16, "--against", tiny_run)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("  passed  ") == 10
    manifest = read_manifest(run)
    write_adapter(tiny_base, run / "adapter", lora_alpha=64)
    finish(run, manifest.config, manifest.template_sha256 or "", tiny_base)
    other = export("verify", f16, "--against", run)
    assert other.exit_code == 1
    assert "FAILED  distributions" in other.stdout
    assert other.stderr.endswith(f"Error: {f16}: not the model of {run}.\n")


@pytest.mark.slow
def test_verify_holds_a_quantised_file_against_a_folder_of_the_hub(
    f16: Path, tiny_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    from export.quantise.quantise import quantise
    from export.quantise.types import Quantisation
    from export.safetensors_pipeline import MergeOptions, merge_run

    merge_run(MergeOptions(tiny_run), tmp_path / "merged", Silent())
    path = tmp_path / "q8_0.gguf"
    quantise(f16, path, Quantisation("q8_0"), Silent())
    result = export("verify", path, "--against", tmp_path / "merged", "--data", tiny_run / "data" / "test.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("  passed  ") == 10
    other = export("verify", path, "--against", tiny_base)
    assert other.exit_code == 1
    assert "FAILED  distributions" in other.stdout
    assert "Export again" in other.stdout


def test_verify_refuses_a_folder_that_is_neither_run_nor_model(f16: Path, tmp_path: Path) -> None:
    message = refused(export("verify", f16, "--against", tmp_path))
    assert message.startswith(f"{tmp_path}: empty: neither a run, an adapter nor a model")
    assert all(name in message for name in ("manifest.json", "adapter_config.json", "config.json"))


@pytest.mark.slow
def test_a_stopped_export_leaves_no_half_file_and_goes_on_from_there(run: Path) -> None:
    command = [sys.executable, "-m", "export", "gguf", str(run), "--quant", "f16", "--quant", "q8_0"]
    out = run / "gguf"
    interrupt(command, (out / ".export-state.json").exists)
    assert {path.name for path in out.iterdir()} == {"tiny-f16.gguf", ".export-state.json"}
    made_ns = (out / "tiny-f16.gguf").stat().st_mtime_ns
    result = export("gguf", run, "--quant", "f16", "--quant", "q8_0")
    assert result.exit_code == 0, result.output
    assert "tiny-f16.gguf, made before" in result.stderr
    assert "Merging" not in result.stderr
    assert (out / "tiny-f16.gguf").stat().st_mtime_ns == made_ns
    check_files(out, read_manifest(out))
    assert not (out / ".export-state.json").exists()


@pytest.mark.slow
def test_an_export_stopped_while_converting_leaves_nothing_behind(run: Path) -> None:
    out = run / "gguf"
    command = [sys.executable, "-m", "export", "gguf", str(run)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("Merging and converting"):
                break
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert not out.exists()


@pytest.mark.parametrize("damage", ["one byte", "cut short", "removed"])
def test_an_adapter_changed_since_its_run_is_refused(run: Path, damage: str) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(data if damage == "one byte" else data[:-1])
    told = {
        "one byte": f"{path}: its bytes differ from the manifest's sha256: damaged or changed since it was made.",
        "cut short": f"{path}: {len(data) - 1:,} bytes, the manifest says {len(data):,}: cut short or changed.",
        "removed": f"{path}: listed in the manifest but missing.",
    }
    assert refused(export("gguf", run)) == told[damage]
    assert not (run / "gguf").exists()


@pytest.mark.slow
def test_an_adapter_that_cannot_be_merged_is_refused_before_any_file_is_made(run: Path, tiny_base: Path) -> None:
    manifest = read_manifest(run)
    edit_json(run / "adapter" / "adapter_config.json", use_qalora=True)
    finish(run, manifest.config, manifest.template_sha256 or "", tiny_base)
    assert refused(export("gguf", run)).endswith("adapter: settings that cannot be merged: use_qalora = true")
    assert not list((run / "gguf").glob("*.gguf"))


def test_a_base_changed_since_its_run_is_refused(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    manifest = read_manifest(run)
    config = manifest.config | {"base": manifest.config["base"] | {"model": str(base)}}
    finish(run, config, manifest.template_sha256 or "", base)
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"changed!")
    assert refused(export("gguf", run)) == (
        f"{base}: not the base that the adapter was trained on: its files have changed."
    )


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    (run / "manifest.json").unlink()
    message = refused(export("gguf", run))
    assert message.startswith(f"{run}: an unfinished run (no manifest.json).")
    assert "--resume" in message


def test_a_folder_of_another_stage_is_refused(run: Path) -> None:
    edit_json(run / "manifest.json", stage="export")
    assert refused(export("gguf", run)) == (
        f"{run}: made by the stage 'export', expected a folder made by `finetune run`, an adapter or a model."
    )


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused(export("gguf", tmp_path / "none")) == f"{tmp_path / 'none'}: no such folder."


def test_an_unknown_type_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    message = refused(export("gguf", tmp_path / "none", "--quant", "q8"))
    assert message.startswith("--quant q8: unknown; known: f32, ")


@pytest.mark.parametrize(
    "arguments", [["gguf"], ["ggu", "run"], ["gguf", "run", "--quants", "f16"], ["verify", "file.gguf"]]
)
def test_a_usage_error_exits_with_2(arguments: list[str]) -> None:
    result = export(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.slow
@pytest.mark.long
def test_an_export_onto_the_weights_as_qlora_held_them_is_proven_against_those(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export("gguf", tiny_run, "--base-precision", "nf4", "--quant", "f16", "--out", out)
    assert result.exit_code == 0, result.output
    path = out / "tiny-f16.gguf"
    assert export("verify", path, "--against", tiny_run, "--base-precision", "nf4").exit_code == 0
    other = export("verify", path, "--against", tiny_run)
    assert other.exit_code == 1
    assert "FAILED  distributions" in other.stdout


def test_a_text_that_is_not_utf8_is_refused_before_anything_is_made(tiny_run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"abc\xff")
    out = tmp_path / "out"
    assert refused(export("gguf", tiny_run, "--imatrix", text, "--out", out)) == f"{text}: byte 4 is not UTF-8."
    assert not list(out.glob("*.gguf"))


@pytest.mark.slow
@pytest.mark.long
def test_onto_best_measures_both_bases_and_takes_the_one_that_predicts_better(tiny_run: Path, tmp_path: Path) -> None:
    result = export("gguf", tiny_run, "--quant", "q8_0", "--base-precision", "best", "--out", tmp_path / "gguf")
    assert result.exit_code == 0, result.output
    said = re.search(
        r"merged onto (16bit|nf4): held-out loss 16bit (\d+\.\d+), nf4 (\d+\.\d+) nats a token, 16bit less nf4 ",
        " ".join(result.output.split()),
    )
    assert said, result.output
    losses = {"16bit": float(said[2]), "nf4": float(said[3])}
    assert losses["16bit"] != losses["nf4"]
    assert losses[said[1]] == min(losses.values())
    assert read_manifest(tmp_path / "gguf").config["onto"] == said[1]
    proof = json.loads((tmp_path / "gguf" / "proof.json").read_text())
    assert proof["held_out"]["tiny"]["nats_per_token"] == pytest.approx(losses[said[1]], abs=0.001)


@pytest.mark.parametrize(
    ("plain", "nf4", "chosen", "sure"),
    [
        ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), "nf4", True),
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), "16bit", True),
        ((2.0, 1.0, 2.1), (1.0, 2.0, 2.0), "nf4", False),
    ],
)
def test_the_base_of_the_lower_loss_is_taken(
    plain: tuple[float, ...], nf4: tuple[float, ...], chosen: str, sure: bool
) -> None:
    onto, note = better_base(HeldOut(plain, (1, 1, 1)), HeldOut(nf4, (1, 1, 1)))
    assert onto == chosen
    assert note.startswith(f"merged onto {chosen}: held-out loss 16bit {sum(plain) / 3:.4f}, nf4 {sum(nf4) / 3:.4f} ")
    assert f"16bit less nf4 {(sum(plain) - sum(nf4)) / 3:.4f} [" in note
    assert ("noise" in note) is not sure


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "1MB"), "--split: q8_0 cannot be split into parts smaller than"),
        (("--imatrix", "short.txt"), "--imatrix short.txt: 3 tokens, an importance matrix needs at least 512"),
        (("--imatrix", "other.gguf"), "not of this model"),
        (("--imatrix", "model.gguf"), "a GGUF, but not an importance matrix: it is a model"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_merged(
    options: tuple[str, str], says: str, tiny_run: Path, tmp_path: Path
) -> None:
    option, value = options
    if option == "--imatrix":
        makers: dict[str, bytes | Gguf] = {
            "short.txt": b"one two three",
            "other.gguf": imatrix(),
            "model.gguf": tiny_bpe(),
        }
        value = str(written(value, makers[value])(tmp_path))
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["gguf", str(tiny_run), option, value, "--out", str(out)])
    assert result.exit_code == 1
    assert says in result.output
    assert "Merging" not in result.output
    assert not list(out.glob("*.gguf"))
