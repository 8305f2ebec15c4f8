"""An adapter on its base as PEFT runs it, its vocabulary as large as in training. Names torch, peft and safetensors."""

import json
import tempfile
from pathlib import Path
from typing import Any

from export.merge.plan import read_plan
from export.merge.tensor_names import pefts_name
from export.tensors.weights import read_adapter_tensors
from gladstone import file_names
from gladstone.process.import_without_gc import import_without_gc


def adapted(model: Any, base: Path, adapter: Path) -> Any:
    """PEFT's model of the adapter in a folder, over the `model` that was loaded from the folder `base`.

    PEFT loads an adapter of a grown vocabulary only onto a base that was resized before, and only tensors that have
    the names of its own version: others are renamed in a copy.
    """
    with import_without_gc():
        from peft import PeftModel

    plan = read_plan(base, [(adapter, 1.0)], "16bit")
    if plan.sizes:
        model.resize_token_embeddings(plan.sizes.after, mean_resizing=False)
    config = json.loads((adapter / file_names.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    tensors = read_adapter_tensors(adapter)
    named = {pefts_name(key): stored for key, stored in tensors.items()}
    parted = bool(config.get("ensure_weight_tying")) and plan.untied  # by a version of PEFT that did not keep them one
    if named.keys() <= tensors.keys() and not parted:
        return PeftModel.from_pretrained(model, str(adapter))
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as work:
        save_file({name: stored.read() for name, stored in named.items()}, Path(work) / file_names.ADAPTER_WEIGHTS)
        config["ensure_weight_tying"] = bool(config.get("ensure_weight_tying")) and not parted
        (Path(work) / file_names.ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return PeftModel.from_pretrained(model, work)
