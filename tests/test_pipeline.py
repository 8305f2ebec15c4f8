"""The whole line on a tiny model: rows → adapter → proven GGUF → answer → report, each stage through its command."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import bench.cli
import export.cli
import finetune.cli
import runtime.cli
from gladstone.artifacts import check_files, read_manifest
from gladstone.gguf.header import read_info
from tests.tiny_models import tiny_recipe, write_model, write_rows_file


def invoke(command: object, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_a_tiny_model_passes_through_every_stage_and_keeps_its_template(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(base, write_rows_file(tmp_path / "rows.jsonl"))))
    run, report = tmp_path / "run", tmp_path / "report"

    trained = invoke(finetune.cli.main, "run", recipe, "--out", run)
    assert "Held-out loss" in trained.output

    exported = invoke(export.cli.main, "gguf", run, "--quant", "q8_0", "--quant", "f16", "--with-base")
    assert "FAILED" not in exported.output
    f16, q8_0 = run / "gguf" / "tiny-f16.gguf", run / "gguf" / "tiny-q8_0.gguf"

    asked = invoke(runtime.cli.main, "ask", f16, "What does the liver mainly do?", "--json", "--max-tokens", "40")
    assert json.loads(asked.stdout)["generated_tokens"] > 0

    data = ["--data", run / "data" / "test.jsonl", "--format", "messages", "--out", report, "--speed-repeats", "1"]
    invoke(bench.cli.main, "run", run / "gguf" / "tiny-base-q8_0.gguf", q8_0, *data, "--max-tokens", "16")
    assert (report / "report.html").read_text(encoding="utf-8").startswith("<!")

    chain = [read_manifest(folder) for folder in (run, run / "gguf", report)]
    for folder, manifest in zip((run, run / "gguf", report), chain, strict=True):
        check_files(folder, manifest)
    templates = {manifest.template_sha256 for manifest in chain} | {read_info(q8_0).template_sha256}
    assert len(templates) == 1
