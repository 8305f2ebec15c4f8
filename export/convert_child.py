"""The converter's own process: llama.cpp's `conversion` package with the adapter merged tensor by tensor.

Run by `export.convert` with the converter's folders first on PYTHONPATH, since its `gguf` and `conversion` packages
share their names with others on the registry. The job comes as JSON on stdin. No merged copy of the model is ever on
disk: each tensor passes from the shard through `W + scale · B·A` in float32 into the GGUF. Names torch, safetensors.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.adapter import WEIGHTS, AdapterConfig, read_adapter_config
from gladstone.errors import GladstoneError, UnsupportedError

Tensors = dict[str, Callable[[], Any]]


def convert(job: dict[str, Any]) -> None:
    """Write `job["out"]` from `job["model"]` and, if there is one, `job["adapter"]`."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    folder = Path(job["model"])
    hparams = ModelBase.load_hparams(folder, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        known = get_model_class(architecture)
    except NotImplementedError:
        raise UnsupportedError(f"llama.cpp's converter does not know the architecture {architecture!r}.") from None
    adapter = Path(job["adapter"]) if job["adapter"] else None

    class Merging(known):  # type: ignore[misc, valid-type]
        """The model class with the adapter folded into the tensors it hands out."""

        model_arch = known.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> Tensors:
            tensors: Tensors = super().index_tensors(remote_hf_model_id)
            return merged_tensors(tensors, adapter) if adapter else tensors

    with torch.inference_mode():
        Merging(folder, gguf.LlamaFileType.MOSTLY_F16, Path(job["out"]), model_name=job["name"]).write()


def merged_tensors(tensors: Tensors, adapter: Path) -> Tensors:
    """The model's lazy tensors with the adapter's updates folded in.

    Raises UnsupportedError if an adapter tensor has no place in the model: nothing that was trained is dropped.
    """
    from conversion.base import LazyTorchTensor
    from safetensors.torch import load_file

    config = read_adapter_config(adapter)
    factors = dict(_pairs(load_file(adapter / WEIGHTS)))
    lost = [name for name in factors if name not in tensors]
    if lost:
        raise UnsupportedError(f"the model has no tensor for the adapter's {', '.join(lost[:3])} (of {len(lost)}).")

    def fold(name: str, load: Callable[[], Any]) -> Callable[[], Any]:
        def lazy() -> Any:
            import torch

            base = load()
            meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, tuple(base.shape))
            return LazyTorchTensor(meta=meta, args=(base,), func=lambda weight: merge(weight, factors[name], config))

        return lazy

    return {name: fold(name, load) if name in factors else load for name, load in tensors.items()}


def merge(weight: Any, factors: tuple[Any, Any], config: AdapterConfig) -> Any:
    """W + scale · B·A in float32; W (out, in), A (r, in), B (out, r); Conv1D keeps W transposed."""
    down, up = (factor.float() for factor in factors)
    update = up @ down
    return weight.float() + config.scale * (update.T if config.fan_in_fan_out else update)


def _pairs(tensors: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Base tensor name → (A, B). PEFT names them `base_model.model.<layer>.lora_A.weight`."""
    for name, down in tensors.items():
        stem, is_down, _ = name.partition(".lora_A.")
        if is_down:
            up = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if up is None:
                raise UnsupportedError(f"the adapter has {name} without its lora_B.")
            yield f"{stem.removeprefix('base_model.model.')}.weight", (down, up)
        elif ".lora_B." not in name:
            raise UnsupportedError(f"the adapter holds {name}, which is no LoRA factor.")


def main() -> None:
    """Exit code 3 marks an error whose message is meant for the user: the last line of stderr."""
    try:
        convert(json.load(sys.stdin))
    except GladstoneError as error:
        print(error, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
