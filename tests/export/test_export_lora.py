"""The adapter alone as GGUF: laid over the base's file it is the model that was trained, or it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.cli import main
from export.convert.convert import Conversion, convert
from export.convert.lora_gguf import pairs_of, write_lora
from export.merge.plan import read_plan
from export.proof.file import verify_file
from export.proof.trained import Trained
from gladstone.artifacts import check_files, read_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import UnsupportedError
from gladstone.gguf.header import read_header
from gladstone.llamacpp.lora import Lora
from runtime.cli import main as runtime
from tests.export.tiny_runs import finish, write_adapter


@pytest.fixture(scope="module")
def base_f16(tiny_base: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untouched base, with the run's tokenizer."""
    path = tmp_path_factory.mktemp("lora") / "base-f16.gguf"
    convert(Conversion("base", tiny_base, tiny_run / "tokenizer"), path, Silent())
    return path


def written(adapter: Path, base: Path, tokenizer: Path, out: Path, template: str) -> Path:
    write_lora(Conversion("tiny", base, tokenizer, ((adapter, 1.0),)), out, template, Silent())
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain", marks=pytest.mark.long),
        pytest.param({"use_rslora": True, "r": 16}, id="rsLoRA"),
        pytest.param(
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 40}}, id="patterns", marks=pytest.mark.long
        ),
    ],
)
def test_base_and_adapter_answer_as_the_trained_model(
    settings: dict[str, Any], base_f16: Path, tiny_base: Path, tiny_run: Path, trained: Trained, tmp_path: Path
) -> None:
    import dataclasses

    write_adapter(tiny_base, tmp_path / "adapter", **settings)
    path = written(
        tmp_path / "adapter", tiny_base, tiny_run / "tokenizer", tmp_path / "a.gguf", trained.template.source
    )
    header = read_header(path, is_model=False)
    assert header.metadata["adapter.lora.alpha"] == 0
    assert len(header.tensors) == 2 * 7 * 2  # two layers of seven matrices, two factors each
    against = dataclasses.replace(trained, adapter=tmp_path / "adapter")
    checks = verify_file(base_f16, against, Silent(), [Lora(path)])
    assert [point.detail for point in checks if not point.passed] == []
    half = verify_file(base_f16, against, Silent(), [Lora(path, 0.5)])
    assert [point.name for point in half if not point.passed] == ["distributions", "greedy answers"]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings",
    "ignore:Setting `save_embedding_layers",
    "ignore:`lora_bias=True` was passed",
    "ignore:Adapter 'default'",
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "a DoRA has lengths besides the product of two matrices"),
        ({"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}, "was trained as a whole"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "an update of the embedding would leave a tied head"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "bias"),
        ({"trainable_token_indices": {"embed_tokens": [5, 6]}, "target_modules": ["q_proj"]}, "rows of the embedding"),
    ],
)
def test_what_a_file_of_its_own_cannot_hold_is_refused(
    settings: dict[str, Any], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    write_adapter(tiny_base, tmp_path / "adapter", **settings)
    with pytest.raises(UnsupportedError, match=message):
        pairs_of(read_plan(tiny_base, [(tmp_path / "adapter", 1.0)], "16bit"))


@pytest.mark.slow
def test_transposed_matrices_are_refused(tmp_path: Path) -> None:
    from tests.families import write_family

    base = write_family("distilgpt2", tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    with pytest.raises(UnsupportedError, match=r"\(merge it with `gladstone export gguf`\).*transposed"):
        pairs_of(read_plan(base, [(tmp_path / "adapter", 1.0)], "16bit"))


@pytest.mark.slow
def test_the_command_writes_adapter_and_base_that_the_runtime_lays_together(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    about = ["--author", "A. Tester", "--language", "en", "--license", "mit"]
    result = CliRunner().invoke(main, ["lora", str(tiny_run), "--out", str(out), *about], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    metadata = read_header(out / "tiny-lora.gguf", is_model=False).metadata
    assert (metadata["general.author"], metadata["general.license"]) == ("A. Tester", "mit")
    card = (out / "README.md").read_text()
    assert "tiny-lora less tiny-base, row by row: " in card
    manifest = read_manifest(out)
    check_files(out, manifest)
    names = {record.path for record in manifest.files}
    assert names == {
        "tiny-base-q8_0.gguf", "tiny-lora.gguf", "proof.json", "proof.txt", "README.md", "Modelfile.adapter",
    }  # fmt: skip
    base, lora = out / "tiny-base-q8_0.gguf", out / "tiny-lora.gguf"
    assert result.stdout.endswith(f"Next: runtime chat {base} --lora {lora}\n")
    assert "ADAPTER ./tiny-lora.gguf" in (out / "Modelfile.adapter").read_text()
    assert "for Ollama before 0.34.1" in (out / "Modelfile.adapter").read_text()
    assert "Note: no Modelfile for Ollama: from 0.34.1 on it takes no adapter. `gladstone export gguf" in result.stdout

    def ask(*options: str) -> str:
        asked = CliRunner().invoke(
            runtime, ["ask", str(base), "What is anaemia?", "--max-tokens", "24", "--json", *options]
        )
        assert asked.exit_code == 0, asked.output
        text: str = json.loads(asked.stdout)["text"]
        return text

    plain = ask()
    assert ask("--lora", str(lora)) != plain
    assert ask("--lora", f"{lora}=0") == plain
    wrong = CliRunner().invoke(runtime, ["ask", str(base), "?", "--lora", str(base)])
    assert wrong.exit_code == 1
    assert "not a LoRA adapter" in wrong.output


@pytest.mark.slow
def test_an_adapter_that_has_to_be_merged_is_refused_before_anything_is_made(
    tiny_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("gguf"))
    manifest = read_manifest(run)
    write_adapter(tiny_base, run / "adapter", use_dora=True)
    finish(run, manifest.config, manifest.template_sha256 or "", tiny_base)
    result = CliRunner().invoke(main, ["lora", str(run)])
    assert result.exit_code == 1
    assert "this adapter cannot be written as its own GGUF (merge it with `gladstone export gguf`)" in result.output
    assert not list(run.glob("lora/*.gguf"))
