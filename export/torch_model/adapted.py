"""Loads an adapter on its base with PEFT, with the vocabulary size of training. Names torch, peft and safetensors."""

import json
import tempfile
from pathlib import Path
from typing import Any

from export.merge.plan import read_plan
from export.merge.tensor_names import pefts_name
from export.tensors.weights import read_adapter_tensors
from gladstone import file_names
from gladstone.process.import_without_gc import import_without_gc
from gladstone.strict_json import json_text


def adapted(model: Any, base: Path, adapter: Path) -> Any:
    """The PeftModel of `adapter` on `model`, which was loaded from the folder `base`.

    PEFT loads an adapter with a grown vocabulary only onto a resized base, and only tensors named as its own version
    names them; tensors with other names are renamed in a copy of the adapter.
    """
    with import_without_gc():
        from peft import PeftModel

    plan = read_plan(base, [(adapter, 1.0)], "16bit")
    if plan.sizes:
        model.resize_token_embeddings(plan.sizes.after, mean_resizing=False)
    config = json.loads((adapter / file_names.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    tensors = read_adapter_tensors(adapter)
    named = {pefts_name(key): stored for key, stored in tensors.items()}
    parted = (
        bool(config.get("ensure_weight_tying")) and plan.untied
    )  # written by a version of PEFT that did not keep them tied
    if named.keys() <= tensors.keys() and not parted:
        return PeftModel.from_pretrained(model, str(adapter))
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as work:
        save_file({name: stored.read() for name, stored in named.items()}, Path(work) / file_names.ADAPTER_WEIGHTS)
        config["ensure_weight_tying"] = bool(config.get("ensure_weight_tying")) and not parted
        (Path(work) / file_names.ADAPTER_CONFIG).write_text(json_text(config), encoding="utf-8")
        return PeftModel.from_pretrained(model, work)


def copied_modules(adapter: Path) -> frozenset[str]:
    """Names of the modules that the adapter holds whole copies of."""
    config = json.loads((adapter / file_names.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return frozenset(config.get("modules_to_save") or ())
