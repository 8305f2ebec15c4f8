"""Files that version 0.1.0 wrote still open, and its options and fields are still accepted (see data/earlier)."""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import bench.cli
import export.cli
import finetune.cli
import gladstone.cli
import runtime.cli
from finetune.config.load import load_recipe
from finetune.sweep.search_space import read_plan
from gladstone.artifacts import check_files, read_manifest
from gladstone.commands.renamed_option import RenamedOption
from gladstone.formats import read_conversations
from runtime.machine.threads import recall

EARLIER = Path(__file__).parent / "data" / "earlier"
RUN, GGUF, LORA = Path("run"), Path("run/gguf"), Path("run/lora")
QUESTION = "What does the liver mainly do?"


@pytest.fixture(autouse=True)
def numbers_of_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was made in float32; another number format would be another run."""
    monkeypatch.setenv("UNSLOTH_CPU_BF16", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working directory."""
    copy = shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(copy)
    return copy


def invoke(command: click.Command, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def json_fields(value: Any, path: str = "") -> Iterator[str]:
    """The path of every field in a JSON value, as `models[].speed.decode`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from json_fields(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from json_fields(inner, f"{path}[]")


def missing_fields(earlier: Any, current: Any) -> set[str]:
    return set(json_fields(earlier)) - set(json_fields(current))


def test_the_files_are_those_that_the_earlier_version_wrote() -> None:
    about = {EARLIER / "README.md", EARLIER / "SHA256SUMS"}
    found = {
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(EARLIER).as_posix()}"
        for path in EARLIER.rglob("*")
        if path.is_file() and path not in about
    }
    assert found == set((EARLIER / "SHA256SUMS").read_text(encoding="utf-8").splitlines())


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by the words that call them."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


def _earlier(option: click.Option) -> list[str]:
    return [option.earlier] if isinstance(option, RenamedOption) else []


def test_every_option_and_every_choice_is_still_accepted() -> None:
    accepted = {
        path: {
            name: set(option.type.choices) if isinstance(option.type, click.Choice) else None
            for option in command.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts, *_earlier(option))
        }
        for path, command in commands(gladstone.cli.main, "gladstone")
    }
    refused = []
    for path, options in read_json(EARLIER / "printed" / "options.json").items():
        for name, choices in options.items():
            if name not in accepted.get(path, {}):
                refused.append(f"{path} {name}")
            elif (taken := accepted[path][name]) is not None:
                refused += [f"{path} {name} {choice}" for choice in choices if choice not in taken]
    assert refused == []


@pytest.mark.parametrize("name", ["every-field", "the-others"])
def test_a_recipe_that_names_every_field_still_loads(name: str) -> None:
    recipe = load_recipe(str(EARLIER / "config" / f"{name}.yaml"), [])
    assert recipe.name == name


@pytest.mark.parametrize("path", ["run/recipe.yaml", "stopped/recipe.yaml", "sweep/best.yaml"])
def test_the_recipe_that_a_run_wrote_still_loads(path: str) -> None:
    assert load_recipe(str(EARLIER / path), []).base.model == "base"


@pytest.mark.parametrize("name", ["SWEEP", "SWEEP-halving"])
def test_a_sweep_that_names_every_field_still_loads(name: str) -> None:
    assert read_plan(EARLIER / "config" / f"{name}.yaml").total in {2, 12}


def test_the_rows_of_a_run_are_still_read() -> None:
    rows = read_conversations(EARLIER / "run" / "data" / "test.jsonl", "messages")
    assert [row.source for row in rows]
    assert all(row.messages[-1].role == "assistant" for row in rows)


@pytest.mark.parametrize("place", [RUN, GGUF, LORA, Path("report"), Path("sweep/trials/trial-001")])
def test_a_manifest_still_vouches_for_its_files(place: Path) -> None:
    manifest = read_manifest(EARLIER / place)
    assert manifest.files
    check_files(EARLIER / place, manifest)


def test_remembered_thread_counts_are_still_used(folder: Path) -> None:
    store = folder / "cache" / "threads.json"
    known = [recall(store, key) for key in read_json(store)]
    assert [(threads.decode, threads.prefill) for threads in known if threads] == [(1, 2), (1, 2)]


@pytest.mark.slow
def test_a_stopped_run_still_goes_on_and_ends_as_the_unbroken_one(folder: Path) -> None:
    invoke(finetune.cli.main, "run", "--resume", "--out", "stopped")
    resumed, unbroken = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("stopped", "run")
    )
    assert len(resumed) == len(unbroken)
    assert resumed[0] == json.loads((EARLIER / "stopped/checkpoints/metrics.jsonl").read_text().splitlines()[0])
    for mine, theirs in zip(resumed, unbroken, strict=True):
        assert not missing_fields(theirs, mine)
    manifests = [read_manifest(folder / name) for name in ("stopped", "run")]
    check_files(folder / "stopped", manifests[0])
    losses = [manifest.facts["held_out_loss_after"] for manifest in manifests]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert not missing_fields(read_json(EARLIER / "run/manifest.json"), read_json(folder / "stopped/manifest.json"))


def test_runs_are_still_compared(folder: Path) -> None:
    told = invoke(finetune.cli.main, "compare", "run", "stopped", "--out", "comparison").output
    for figure in ("7.3828", "7.3662", "7.2769", "7.2831", "4,736"):
        assert figure in told
    with (folder / "comparison" / "compare.csv").open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["run", "run", "stopped"]


@pytest.mark.slow
def test_an_estimate_still_has_its_fields(folder: Path) -> None:
    printed = invoke(finetune.cli.main, "estimate", "tiny.yaml", "--device", "t4", "--json").stdout
    assert not missing_fields(read_json(folder / "printed" / "estimate.json"), json.loads(printed.splitlines()[-1]))


@pytest.mark.slow
def test_a_finished_export_still_takes_another_type_without_converting_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted((folder / GGUF).glob("*.gguf"))}
    told = invoke(export.cli.main, "gguf", RUN, "--quant", "f16", "--quant", "q8_0", "--quant", "q4_0").output
    assert "FAILED" not in told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    manifest = read_manifest(folder / GGUF)
    check_files(folder / GGUF, manifest)
    assert {record.path for record in manifest.files} >= {"tiny-f16.gguf", "tiny-q8_0.gguf", "tiny-q4_0.gguf"}


@pytest.mark.long
def test_the_adapter_of_a_run_is_still_exported_alone(folder: Path) -> None:
    before = (folder / LORA / "tiny-lora.gguf").stat().st_mtime_ns
    invoke(export.cli.main, "lora", RUN)
    assert (folder / LORA / "tiny-lora.gguf").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_is_still_merged(folder: Path) -> None:
    invoke(export.cli.main, "merge", RUN, "--out", "merged")
    check_files(folder / "merged", read_manifest(folder / "merged"))


@pytest.mark.slow
def test_an_exported_file_is_still_verified_against_its_run(folder: Path) -> None:
    told = invoke(export.cli.main, "verify", GGUF / "tiny-q8_0.gguf", "--against", RUN).output
    assert "FAILED" not in told


def test_a_finished_export_is_still_ready_to_upload(folder: Path) -> None:
    told = invoke(export.cli.main, "push", GGUF, "me/tiny", "--dry-run").output
    for name in ("tiny-f16.gguf", "tiny-q8_0.gguf", "README.md", "Modelfile"):
        assert name in told


def test_an_exported_file_is_still_described_with_its_manifest_and_proof(folder: Path) -> None:
    current = json.loads(invoke(runtime.cli.main, "info", GGUF / "tiny-f16.gguf", "--json").stdout)
    earlier = read_json(folder / "printed" / "info.json")
    assert not missing_fields(earlier, current)
    for name in (
        "architecture",
        "parameters",
        "quantisation",
        "special_tokens",
        "template_sha256",
        "manifest",
        "proof_passed",
    ):
        assert current[name] == earlier[name], name


def test_an_exported_file_still_answers(folder: Path) -> None:
    arguments = [GGUF / "tiny-f16.gguf", QUESTION, "--max-tokens", 8, "--json", "--logprobs", 1]
    answer = json.loads(invoke(runtime.cli.main, "ask", *arguments).stdout)
    earlier = read_json(folder / "printed" / "ask.json")
    assert not missing_fields(earlier, answer)
    assert answer["prompt_tokens"] == earlier["prompt_tokens"]
    assert answer["logprobs"][0]["logprob"] == pytest.approx(earlier["logprobs"][0]["logprob"], abs=0.05)


def test_an_exported_adapter_is_still_laid_over_its_base(folder: Path) -> None:
    arguments = [LORA / "tiny-base-q8_0.gguf", QUESTION, "--lora", LORA / "tiny-lora.gguf", "--max-tokens", 4, "--json"]
    assert json.loads(invoke(runtime.cli.main, "ask", *arguments).stdout)["generated_tokens"] > 0


@pytest.mark.slow
def test_a_finished_sweep_is_still_read(folder: Path) -> None:
    table = (folder / "sweep" / "table.csv").read_text(encoding="utf-8")
    told = invoke(finetune.cli.main, "sweep", "sweep.yaml", "--out", "sweep").output
    assert "7.2686" in told
    assert "7.2854" in told
    assert (folder / "sweep" / "table.csv").read_text(encoding="utf-8") == table


@pytest.mark.slow
def test_a_report_still_has_its_fields(folder: Path) -> None:
    models = [GGUF / "tiny-f16.gguf", GGUF / "tiny-q8_0.gguf"]
    data = ["--data", RUN / "data/test.jsonl", "--format", "messages", "--rows", 2, "--answers", 2]
    invoke(bench.cli.main, "run", *models, *data, "--max-tokens", 4, "--speed-repeats", 1, "--out", "again")
    for name in ("report.json", "manifest.json"):
        assert not missing_fields(read_json(folder / "report" / name), read_json(folder / "again" / name))
