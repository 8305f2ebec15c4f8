"""What can be exported: runs, adapters by other tools, models' folders, and what is said of anything else."""

import json
import shutil
from pathlib import Path

import pytest

from export.original.finding import find, opened
from export.original.model import Original, SourceOptions
from export.original.names import name_of
from export.original.tokenizer import TokenizerOrigin
from gladstone.artifacts import write_json
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ConfigError, GladstoneError, UnsupportedError
from tests.export.tiny_runs import edit_json
from tests.tiny_models import copy_model, write_tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def adapter(tiny_run: Path, tmp_path: Path) -> Path:
    """What PEFT writes and nothing else, of a base that is not here."""
    shutil.copytree(tiny_run / "adapter", tmp_path / "tune")
    edit_json(tmp_path / "tune" / CONFIG, base_model_name_or_path="/kaggle/input/llama/1b/1")
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {CONFIG, WEIGHTS}
    return tmp_path / "tune"


def open_it(path: Path, base: Path | str | None = None, rows: Path | None = None) -> Original:
    """Opened and closed again: its tokenizer is gone."""
    with opened(find(path, SourceOptions(str(base) if base else None, None, rows)), Silent()) as original:
        assert original.template_source
        return original


def refused(path: Path, kind: type[GladstoneError], base: Path | str | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_it(path, base)
    return str(caught.value)


def test_a_bare_adapter_is_merged_onto_the_base_that_a_user_names(adapter: Path, tiny_base: Path) -> None:
    original = open_it(adapter, tiny_base)
    assert (original.origin, original.name, original.adapter) == ("adapter", "tune", adapter)
    assert original.found_in == TokenizerOrigin("the base", "the base")
    assert original.base.folder == tiny_base
    assert original.rows.kind == "none"
    assert set(original.training.unknown) == {"data", "training settings", "licence"}


def test_a_base_that_is_gone_is_named_with_the_option_that_brings_it(adapter: Path) -> None:
    message = refused(adapter, ConfigError)
    assert str(adapter / CONFIG) in message
    assert "'/kaggle/input/llama/1b/1'" in message
    assert "--base FOLDER|HUB-ID" in message
    edit_json(adapter / CONFIG, base_model_name_or_path=None)
    assert "names no base" in refused(adapter, ConfigError)


def test_a_base_on_the_hub_that_is_not_in_the_cache_is_named(adapter: Path) -> None:
    edit_json(adapter / CONFIG, base_model_name_or_path="no-such-owner/no-such-model")
    message = refused(adapter, UnsupportedError)
    assert "'no-such-owner/no-such-model'" in message
    assert "not in the local cache" in message
    assert message.endswith("--base FOLDER.")


@pytest.mark.parametrize("named", ["unsloth/tiny-bnb-4bit", "unsloth/Tiny-unsloth-bnb-4bit"])
def test_of_a_copy_in_4_bit_the_model_itself_is_taken(
    named: str, adapter: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(adapter / CONFIG, base_model_name_or_path=named)
    plain = named.partition("-")[0]
    assert f"a copy in 4 bit of {plain}" in refused(adapter, UnsupportedError)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, tmp_path / plain)
    note = open_it(adapter).notes[0]
    assert named in note
    assert f"merged onto {plain}" in note
    assert "--base" in note


def test_tokenizer_and_template_beside_an_adapter_are_those_that_are_used(adapter: Path, tiny_base: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    with opened(find(adapter, SourceOptions(str(tiny_base))), Silent()) as original:
        assert original.found_in == TokenizerOrigin("the base", "the adapter's folder")
        assert original.template_source == "{{ messages[0].content }}"
    (adapter / "chat_template.jinja").unlink()
    write_tokenizer(adapter)
    template = (adapter / "chat_template.jinja").read_text(encoding="utf-8")
    (adapter / "chat_template.jinja").unlink()
    edit_json(
        adapter / "tokenizer_config.json", chat_template=[{"name": "default", "template": template + "{# own #}"}]
    )
    with opened(find(adapter, SourceOptions(str(tiny_base))), Silent()) as original:
        assert original.found_in == TokenizerOrigin("the adapter's folder", "the adapter's folder")
        assert original.template_source == template + "{# own #}"
        placed = json.loads((original.tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert "chat_template" not in placed  # llama.cpp's converter would take it before the file


def test_a_checkpoint_of_a_trainer_is_an_adapter_among_files_that_are_not_read(adapter: Path, tiny_base: Path) -> None:
    checkpoint = adapter.parent / "outputs" / "checkpoint-500"
    shutil.copytree(adapter, checkpoint)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (checkpoint / name).write_bytes(b"\x80\x04never read")
    given, around = open_it(checkpoint, tiny_base), open_it(checkpoint.parent, tiny_base)
    assert given.name == around.name == "outputs-checkpoint-500"
    assert around.adapter == checkpoint
    assert str(checkpoint) in around.notes[0]
    assert around.home == checkpoint.parent
    shutil.copytree(adapter, checkpoint.with_name("checkpoint-1000"))
    message = refused(checkpoint.parent, ArtifactError, tiny_base)
    assert "checkpoint-1000, checkpoint-500" in message


def test_a_file_says_which_of_an_adapter_and_a_model_in_one_folder_is_meant(adapter: Path, tiny_base: Path) -> None:
    for path in tiny_base.iterdir():
        shutil.copy(path, adapter / path.name)
    message = refused(adapter, ArtifactError, tiny_base)
    assert str(adapter / CONFIG) in message
    assert str(adapter / "model.safetensors") in message
    assert open_it(adapter / CONFIG, tiny_base).origin == "adapter"
    assert open_it(adapter / WEIGHTS, tiny_base).adapter == adapter
    model = open_it(adapter / "model.safetensors")
    assert (model.origin, model.adapter, model.base.folder) == ("folder", None, adapter)


def test_a_model_without_a_tokenizer_takes_that_of_the_base_that_is_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = copy_model(tiny_base, tmp_path / "merged")
    for path in [*folder.glob("tokenizer*"), folder / "chat_template.jinja"]:
        path.unlink()
    assert "--base FOLDER|HUB-ID" in refused(folder, ConfigError)
    original = open_it(folder, tiny_base)
    assert original.found_in == TokenizerOrigin("the base", "the base")
    assert original.base.folder == folder


def test_quantised_weights_are_refused_with_what_to_do(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = copy_model(tiny_base, tmp_path / "packed")
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    left_over = refused(folder, UnsupportedError)
    assert "its weights are not" in left_over
    assert "Remove quantization_config" in left_over
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(2048, 1, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder, UnsupportedError)
    assert "already quantised (bitsandbytes in 4 bit; as model.layers.0.self_attn.q_proj.weight shows)" in message
    assert "gladstone export gguf ADAPTER --base" in message
    message = refused(adapter, UnsupportedError, folder)
    assert f"--base {folder}: already quantised" in message


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type PROMPT_TUNING"),
        ({"peft_type": None}, "names no peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type SEQ_CLS"),
        ({"r": 0}, "r is 0"),
        ({"r": "8"}, 'r is "8"'),
        ({"lora_alpha": None}, "lora_alpha null"),
    ],
)
def test_another_kind_of_adapter_is_named(
    changed: dict[str, object], told: str, adapter: Path, tiny_base: Path
) -> None:
    edit_json(adapter / CONFIG, **changed)
    assert told in refused(adapter, GladstoneError, tiny_base)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"LORA"', "\x00"])
def test_a_broken_adapter_config_is_told_with_its_path(text: str, adapter: Path, tiny_base: Path) -> None:
    (adapter / CONFIG).write_text(text, encoding="utf-8")
    assert refused(adapter, ArtifactError, tiny_base).startswith(f"{adapter / CONFIG}: broken")


def test_what_is_no_model_is_told_for_what_it_is(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: neither a run, an adapter nor a model" in refused(tmp_path / "empty", ArtifactError)
    (adapter / CONFIG).unlink()
    assert f"weights without their {CONFIG}" in refused(adapter, ArtifactError)
    write_json(adapter / CONFIG, {"peft_type": "LORA", "r": 8, "lora_alpha": 16})
    (adapter / WEIGHTS).unlink()
    assert WEIGHTS in refused(adapter, ArtifactError)
    assert "no such folder" in refused(tmp_path / "nothing", ArtifactError)
    assert "hf download" in refused(Path("owner/tune"), ArtifactError)
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    assert "rows.jsonl: a file" in refused(tmp_path / "rows.jsonl", ArtifactError)


def test_a_run_that_was_stopped_is_not_taken_for_another_tools(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "manifest.json").unlink()
    (run / "train.log").touch()
    for given in (run, run / "adapter"):
        message = refused(given, ArtifactError)
        assert "unfinished" in message
        assert "--resume" in message


def test_the_adapter_of_a_finished_run_stands_for_the_run(tiny_run: Path) -> None:
    original = open_it(tiny_run / "adapter")
    assert (original.origin, original.home) == ("run", tiny_run)
    assert original.rows.kind == "held out"


def test_a_run_whose_base_is_gone_says_which_option_brings_it(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["base"]["model"] = "/gone/base"
    write_json(run / "manifest.json", manifest)
    message = refused(run, ConfigError)
    assert message.startswith(f"{run} was trained on '/gone/base'")
    assert "--base FOLDER|HUB-ID" in message


def test_a_base_named_beside_a_run_must_be_the_one_it_was_trained_on(
    tiny_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    assert open_it(tiny_run, copy_model(tiny_base, tmp_path / "moved")).base.folder == tmp_path / "moved"
    edit_json(tmp_path / "moved" / "config.json", rms_norm_eps=1e-3)
    message = refused(tiny_run, ArtifactError, tmp_path / "moved")
    assert f"--base {tmp_path / 'moved'}" in message
    assert str(tiny_run) in message


def test_the_key_changes_with_adapter_tokenizer_template_and_base(adapter: Path, tiny_base: Path) -> None:
    keys = [open_it(adapter, tiny_base).key]
    edit_json(adapter / CONFIG, lora_alpha=17)
    keys.append(open_it(adapter, tiny_base).key)
    (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    keys.append(open_it(adapter, tiny_base).key)
    assert len(set(keys)) == 3
    assert open_it(adapter, tiny_base).key == keys[-1]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/a/my tune", "my-tune"),
        ("/a/tune/checkpoint-500", "tune-checkpoint-500"),
        ("/a/größe", "gr-e"),
        ("/a/---", "model"),
        ("/", "model"),
        (f"/c/models--owner--tune/snapshots/{'0a' * 20}", "tune"),
        (f"/a/{'x' * 80}", "x" * 64),
    ],
)
def test_files_are_called_as_the_folder_is(folder: str, name: str) -> None:
    assert name_of(Path(folder)) == name
