"""What computes a training: the library that loaded the model, and the device, precision and attention it chose."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

from finetune.model.trainable import Trainable
from gladstone.machine.packages import installed_versions


@dataclass(frozen=True)
class Backend:
    """A library with its version, and what it chose; `device` is Unsloth's device type, or torch's without Unsloth."""

    library: str
    device: str
    precision: str
    attention: str

    def __str__(self) -> str:
        return f"{self.library} on {self.device} in {self.precision}, attention by {self.attention}"

    def as_json(self) -> dict[str, Any]:
        """What a manifest records."""
        return asdict(self)


def chosen_backend(trainable: Trainable) -> Backend:
    """Read what was chosen off the loaded model and the libraries that loaded it."""
    pairs = bool(trainable.model.config.is_encoder_decoder)  # which Unsloth does not load
    unsloth: Any = None if pairs else sys.modules.get("unsloth_zoo.device_type")
    package = "transformers" if unsloth is None else "unsloth"
    device = trainable.device_kind if unsloth is None else str(unsloth.DEVICE_TYPE)
    library = f"{package} {installed_versions(package).get(package, '')}".strip()
    return Backend(
        library, device, trainable.dtype, _attention(trainable, on_gpu=unsloth is not None and device != "cpu")
    )


def _attention(trainable: Trainable, *, on_gpu: bool) -> str:
    """Unsloth's choice on a GPU; elsewhere Gladstone's own for packed rows, or transformers'."""
    if not trainable.forward.padded:
        return "gladstone (packed rows)"
    dispatch: Any = sys.modules.get("unsloth.utils.attention_dispatch")
    if on_gpu and dispatch is not None:
        return str(dispatch.select_attention_backend())
    return str(getattr(trainable.model.config, "_attn_implementation", None) or "transformers")
