"""The trained model in torch: what a GGUF is proven against. Names torch, transformers and peft.

The adapter is not merged but applied as it was in training: of a model whose embedding and head are one matrix, PEFT's
merge would change both where training changed one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gladstone.host import available_memory_bytes


class Reference:
    """Base and adapter as PEFT runs them, in float32 where memory allows, else in the base's 16-bit type."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        # stored in 16 bit: twice that in float32, and half as much again while it loads
        roomy = 3 * weights < available_memory_bytes()
        self.dtype = "float32" if roomy else "bfloat16"
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, self.dtype), local_files_only=True, trust_remote_code=False
        )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
        self._model = model.eval()

    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Next-token logits (T, V) after each of `tokens`."""
        import torch

        with torch.inference_mode():
            result: npt.NDArray[np.float32] = self._model(torch.tensor([tokens])).logits[0].float().numpy()
        return result
