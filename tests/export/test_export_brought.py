"""Exports of what other tools made: an adapter with nothing but PEFT's two files, models in torch's own files, merges."""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.cli import main
from export.original.finding import find, opened
from export.original.model import SourceOptions
from export.publish.push import plan_upload
from export.safetensors_pipeline import MergeOptions, merge_run
from export.tensors.weights import read_folder
from gladstone.artifacts import read_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError
from gladstone.gguf.header import read_header
from gladstone.models.base_model import resolve_base
from tests.export.tiny_runs import edit_json, load_float32, write_adapter
from tests.tiny_models import TinyShape, copy_model, write_model, write_rows_file

CONFIG = "adapter_config.json"


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments: Any) -> str:
    result = export(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return re.sub(r"(?s)^.*?Error: ", "", result.stderr).rstrip("\n")


def as_bin(folder: Path) -> Path:
    """The same weights in torch's own files, as older tools wrote them; a model's in two parts with their index."""
    import torch
    from safetensors.torch import load_file

    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        path.unlink()
        if path.stem == "adapter_model":
            torch.save(tensors, folder / "adapter_model.bin")
            continue
        names = sorted(tensors)
        parts = {f"pytorch_model-0000{part}-of-00002.bin": names[part - 1 :: 2] for part in (1, 2)}
        for file, held in parts.items():
            torch.save({name: tensors[name] for name in held}, folder / file)
        where = {name: file for file, held in parts.items() for name in held}
        (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="package")
def bare(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as a notebook leaves it: two files, and a base that was on another machine."""
    folder = tmp_path_factory.mktemp("brought") / "tune"
    shutil.copytree(tiny_run / "adapter", folder)
    edit_json(folder / CONFIG, base_model_name_or_path="/kaggle/input/llama/1b/1", peft_version="0.15.2")
    return folder


@pytest.fixture(scope="module")
def exported(bare: Path, tiny_base: Path) -> tuple[Path, Result]:
    rows = write_rows_file(bare.with_name("mine.jsonl"))
    template = bare.with_name("mine.jinja")
    template.write_text((tiny_base / "chat_template.jinja").read_text(encoding="utf-8") + "{# mine #}", "utf-8")
    result = export(
        "gguf", bare, "--base", tiny_base, "--data", rows, "--chat-template", template, "--quant", "f16"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return bare / "gguf", result


@pytest.mark.slow
def test_a_bare_adapter_becomes_a_proven_gguf(exported: tuple[Path, Result], bare: Path) -> None:
    out, result = exported
    assert result.stdout.count("  passed  ") == 10
    assert result.stdout.endswith(f"Next: runtime chat {out / 'tune-f16.gguf'}\n")
    metadata = read_header(out / "tune-f16.gguf").metadata
    assert metadata["tokenizer.chat_template"].endswith("{# mine #}")
    assert metadata["general.name"] == "tune"
    assert "general.license" not in metadata
    assert plan_upload(out, "me/tune").files.keys() >= {"tune-f16.gguf", "README.md", "Modelfile"}


@pytest.mark.slow
def test_what_is_unknown_of_an_adapter_is_said_to_be(exported: tuple[Path, Result]) -> None:
    out, _ = exported
    card, page = ((out / name).read_text(encoding="utf-8") for name in ("README.md", "proof.txt"))
    assert "| this model | tune | unknown: find out before you share this model |" in card
    assert "| data | unknown | unknown |" in card
    assert "| all other settings | unknown |" in card
    assert "| rank, alpha | 8, 16 |" in card
    assert "| base, as the adapter names it | /kaggle/input/llama/1b/1 |" in card
    assert "| PEFT | 0.15.2 |" in card
    assert "- medical" not in card
    assert "not trained on (" not in card
    assert "given rows" in card
    assert re.search(r"^rows +given with --data", page, re.M)
    assert re.search(r"^template +--chat-template ", page, re.M)
    assert re.search(r"^unknown +data, training settings, licence$", page, re.M)
    assert re.search(r"^unchecked +that the base is the one used in training", page, re.M)
    manifest = read_manifest(out)
    assert manifest.config["origin"] == "adapter"
    assert manifest.facts["unknown"] == ["data", "training settings", "licence"]
    assert manifest.seed is None
    assert manifest.parents.keys() == {"adapter", "base"}


@pytest.mark.slow
def test_a_stopped_export_of_an_adapter_goes_on_and_one_of_another_does_not(
    exported: tuple[Path, Result], bare: Path, tiny_base: Path, tmp_path: Path
) -> None:
    out, _ = exported
    other = tmp_path / "tune"
    shutil.copytree(bare, other, ignore=shutil.ignore_patterns("gguf"))
    edit_json(other / CONFIG, lora_alpha=32)
    message = refused("gguf", other, "--base", tiny_base, "--out", out)
    assert message.endswith("holds the export of another adapter or base. Choose another folder with --out.")


@pytest.mark.slow
def test_a_merged_model_is_exported_with_what_is_known_of_its_run(tiny_run: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merge_run(MergeOptions(tiny_run), merged, Silent())
    with opened(find(tiny_run), Silent()) as run, opened(find(merged), Silent()) as original:
        assert original.training == dataclasses.replace(
            run.training, settings=(*run.training.settings, ("merged onto", "the base in 16 bit"))
        )
        assert (original.name, original.origin) == ("tiny", "folder")
        assert original.template_source == run.template_source
    result = export("gguf", merged, "--quant", "f16", "--out", tmp_path / "gguf")
    assert result.exit_code == 0, result.output
    assert "on questions of Gladstone's own" in " ".join(result.output.split())
    card = (tmp_path / "gguf" / "README.md").read_text(encoding="utf-8")
    assert "| rank, alpha | 8, 16 |" in card
    assert "rows.jsonl" in card
    assert "How well it answers was not measured" in card


def test_a_training_that_went_wrong_is_told_of_its_merge_as_well(tiny_run: Path, tmp_path: Path) -> None:
    merge_run(MergeOptions(tiny_run), tmp_path / "merged", Silent())
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text(encoding="utf-8"))
    manifest["facts"]["training_warnings"] = ["it is worse than before"]
    (tmp_path / "merged" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    message = refused("gguf", tmp_path / "merged")
    assert "its training went wrong: it is worse than before" in message
    assert "--yes" in message


def test_weights_in_torchs_own_files_are_merged_to_the_same_model(bare: Path, tiny_base: Path, tmp_path: Path) -> None:
    base, adapter = copy_model(tiny_base, tmp_path / "base"), copy_model(bare, tmp_path / "tune")
    merge_run(MergeOptions(adapter, source_options=SourceOptions(str(base))), tmp_path / "plain", Silent())
    as_bin(base)
    as_bin(adapter)
    assert not [*base.glob("*.safetensors"), *adapter.glob("*.safetensors")]
    merge_run(MergeOptions(adapter, source_options=SourceOptions(str(base))), tmp_path / "pickled", Silent())
    ours, theirs = (read_folder(tmp_path / name) for name in ("pickled", "plain"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].read().equal(theirs[name].read()) for name in theirs)
    merge_run(MergeOptions(base), tmp_path / "rewritten", Silent())  # what finetune's refusal of such a base advises
    assert resolve_base(str(tmp_path / "rewritten"), Silent()).folder == tmp_path / "rewritten"
    rewritten = read_folder(tmp_path / "rewritten")
    assert all(rewritten[name].read().equal(each.read()) for name, each in read_folder(tiny_base).items())


@pytest.mark.slow
def test_a_model_in_torchs_own_files_becomes_a_proven_gguf(tiny_base: Path, tmp_path: Path) -> None:
    folder = as_bin(copy_model(tiny_base, tmp_path / "model"))
    result = export("gguf", folder, "--quant", "f16")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("  passed  ") == 10
    card = (folder / "gguf" / "README.md").read_text(encoding="utf-8")
    assert "| base model | unknown | unknown |" in card
    assert "merged onto" not in card


class _Code:
    """What a pickle should never do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    name: str, bare: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    source = bare if name.startswith("adapter") else tiny_base
    folder = copy_model(source, tmp_path / "evil")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": _Code(tmp_path / "ran")}, folder / name)
    options = ["--base", tiny_base] if source == bare else []
    message = refused("gguf", folder, *options)
    assert message.startswith(str(folder / name))
    assert "would run code (posix.mkdir)" in message or "would run code (nt.mkdir)" in message
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert str(folder / name) in refused("gguf", folder, *options)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_of_a_base_with_other_shapes_is_refused_before_anything_is_made(
    bare: Path, f16: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", TinyShape(width=32))
    message = refused("gguf", bare, "--base", other)
    assert "--base" in message
    assert (
        "model.layers.0.self_attn.q_proj.weight is 32 × 32 in the base, and changed by a matrix of 64 × 64" in message
    )
    assert not (bare / "gguf" / "export.log").exists() or (bare / "gguf" / "manifest.json").exists()
    assert message == refused("merge", bare, "--base", other)
    assert message == refused("verify", f16, "--against", bare, "--base", other)
    deeper = tmp_path / "deeper"
    write_adapter(write_model(tmp_path / "three", TinyShape(layers=3)), deeper)
    message = refused("gguf", deeper, "--base", other)
    assert "model.layers.2." in message
    assert "--base" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lora"], "without an adapter"),
        (["gguf", "--with-base"], "--with-base"),
        (["gguf", "--base-precision", "nf4"], "--base-precision nf4"),
        (["merge", "--weight", "0.5"], "--weight"),
        (["gguf", "--imatrix", "train"], "--imatrix FILE"),
    ],
)
def test_what_only_an_adapter_or_a_run_has_is_refused_of_a_model(
    arguments: list[str], told: str, tiny_base: Path, tmp_path: Path
) -> None:
    command, *options = arguments
    assert told in refused(command, tiny_base, *options, "--out", tmp_path / "out")


def test_a_model_without_a_chat_template_says_which_option_brings_one(tiny_base: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_base, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    message = refused("gguf", folder)
    assert "--chat-template FILE" in message
    assert "chatml" in message
    with opened(find(folder, SourceOptions(template="chatml")), Silent()) as original:
        assert original.found_in.template == "--chat-template chatml"
        assert original.notes == ()
    with opened(find(folder, SourceOptions(template="llama3")), Silent()) as original:
        assert "<|start_header_id|>" in original.notes[0]
    assert "no-such" in refused("gguf", folder, "--chat-template", "no-such")


def test_a_template_that_ends_no_answer_is_refused_before_anything_is_made(
    bare: Path, tiny_base: Path, tmp_path: Path
) -> None:
    endless = tmp_path / "endless.jinja"
    endless.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]", encoding="utf-8"
    )
    out = tmp_path / "out"
    said = refused("gguf", bare, "--base", tiny_base, "--chat-template", endless, "--out", out)
    assert "without a special token" in said
    assert "--chat-template" in said
    assert not list(out.glob("*.gguf"))


def test_options_that_a_run_has_no_use_for_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    assert "--chat-template" in refused("gguf", tiny_run, "--chat-template", "chatml")
    rows = write_rows_file(tmp_path / "rows.jsonl")
    assert refused("gguf", tiny_run, "--data", rows).startswith("--data: the run has its own held-out rows")


def test_a_folder_that_cannot_be_written_to_is_told_with_the_option(
    bare: Path, tiny_base: Path, tmp_path: Path
) -> None:
    if sys.platform == "linux":  # where nobody can make a folder, not even root
        assert "--out" in refused("gguf", bare, "--base", tiny_base, "--out", "/proc/gguf")
    cached = tmp_path / "models--me--tune" / "snapshots" / ("0a" * 20)
    shutil.copytree(bare, cached, ignore=shutil.ignore_patterns("gguf"))
    assert "--out" in refused("gguf", cached, "--base", tiny_base)


def test_a_dry_run_of_an_adapter_makes_nothing(bare: Path, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "tune", ignore=shutil.ignore_patterns("gguf"))
    result = export("gguf", tmp_path / "tune", "--base", tiny_base, "--quant", "q8_0", "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^q8_0 +5\.\d MB", result.stdout, re.M)
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {CONFIG, "adapter_model.safetensors"}


@pytest.mark.slow
@pytest.mark.long
def test_the_adapter_alone_of_another_tool_is_proven_over_its_base(bare: Path, tiny_base: Path, tmp_path: Path) -> None:
    result = export("lora", bare, "--base", tiny_base, "--quant", "f16", "--out", tmp_path / "lora")
    assert result.exit_code == 0, result.output
    verified = export(
        "verify", tmp_path / "lora" / "tune-base-f16.gguf", "--against", bare, "--base", tiny_base,
        "--lora", tmp_path / "lora" / "tune-lora.gguf",
    )  # fmt: skip
    assert verified.exit_code == 0, verified.output


def test_peft_loads_what_is_taken_from_torchs_own_files(bare: Path, tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = as_bin(copy_model(bare, tmp_path / "tune"))
    PeftModel.from_pretrained(load_float32(tiny_base), str(adapter))
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ArtifactError, match="neither"):
        find(adapter)
