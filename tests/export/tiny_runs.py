"""Run folders of a tiny model with an adapter that changes much, and GGUF files with a changed header."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from export.original.finding import find, opened
from export.original.model import SourceOptions
from export.proof.trained import Trained, trained_of
from finetune.config.schema import Recipe
from finetune.data.prepare import prepare
from gladstone.artifacts import Manifest, record_file, write_manifest, write_text
from gladstone.commands.progress import Silent
from gladstone.models.base_model import resolve_base
from gladstone.models.tokenizer import load_tokenizer
from tests.tiny_models import tiny_recipe, write_rows_file, write_tokenizer


def load_float32(base: Path) -> Any:
    """A model's folder in torch, whatever it is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    encodes = json.loads((base / "config.json").read_text(encoding="utf-8")).get("is_encoder_decoder")
    kind = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    return kind.from_pretrained(base, dtype=torch.float32, local_files_only=True)


def write_adapter(base: Path, folder: Path, **settings: Any) -> None:
    """A LoRA adapter as PEFT saves it, its factors random instead of zero and its copies of tables changed."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_float32(base)
    chosen: dict[str, Any] = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(model, LoraConfig(**(chosen | settings)))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".modules_to_save." in name or "trainable_tokens" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)


def write_run(folder: Path, base: Path, adapter: Path | None = None) -> Path:
    """A finished run folder, as `finetune run` leaves it, with a random adapter or a given one."""
    folder.mkdir(parents=True)
    rows = write_rows_file(folder.with_name("rows.jsonl"))
    recipe = Recipe.model_validate(tiny_recipe(base, rows))
    prepare(recipe.data, folder / "data", Silent())
    write_tokenizer(folder / "tokenizer")
    template = load_tokenizer(folder / "tokenizer").template()
    write_text(folder / "chat_template.jinja", template.source)
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    if adapter:
        shutil.copytree(adapter, folder / "adapter")
    else:
        write_adapter(base, folder / "adapter")
    finish(folder, recipe.model_dump(mode="json"), template.sha256, base)
    return folder


def finish(folder: Path, config: dict[str, Any], template_sha256: str, base: Path) -> None:
    """Write the manifest over all files that the folder holds now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    manifest = Manifest(
        stage="finetune",
        files=tuple(record_file(folder, path) for path in files),
        parents={"base": resolve_base(str(base), Silent()).fingerprint},
        config=config,
        versions={},
        template_sha256=template_sha256,
        seed=0,
    )
    write_manifest(folder, manifest)


def trained_by(path: Path, asked: SourceOptions | None = None) -> Trained:
    """What a file made of a run, an adapter or a model is held against."""
    with opened(find(path, asked), Silent()) as original:
        return trained_of(original)


def edit_json(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | fields), encoding="utf-8")


@cache
def _parts(path: Path) -> tuple[dict[str, tuple[Any, Any, Any]], list[Any]]:
    """Every key's value, type and inner type, and the tensors; read once, since a vocabulary takes seconds."""
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)
    fields = {
        name: (field.contents(), field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    return fields, reader.tensors


def rewrite_gguf(source: Path, target: Path, *, spoilt: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A copy with other metadata, names written with `__` for a dot; `spoilt` changes tensors, None leaves one out."""
    from gguf import GGUFWriter

    fields, tensors = _parts(source)
    wanted = {name.replace("__", "."): value for name, value in changes.items()}
    assert wanted.keys() <= fields.keys()
    writer = GGUFWriter(target, arch=fields["general.architecture"][0])
    for name, (value, kind, inner) in fields.items():
        if name != "general.architecture":
            writer.add_key_value(name, wanted.get(name, value), kind, sub_type=inner)
    spoilt = spoilt or {}
    for tensor in tensors:
        change = spoilt.get(tensor.name, lambda data: data)
        if change is not None:
            data = change(tensor.data)
            assert data.shape == tensor.data.shape
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    assert spoilt.keys() <= {tensor.name for tensor in tensors}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
