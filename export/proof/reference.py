"""The trained model in torch: what a GGUF is proven against. Names torch, transformers and peft.

The adapter is not merged but applied as it was in training: of a model whose embedding and head are one matrix, PEFT's
merge would change both where training changed one.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from export.proof.trained import Trained
from gladstone.host import available_memory_bytes
from gladstone.importing import importing


class Reference:
    """Base and adapter as PEFT runs them, in float32 where memory allows, else in the base's 16-bit type."""

    def __init__(self, trained: Trained) -> None:
        with importing():
            import torch
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        weights = sum(path.stat().st_size for path in trained.base.glob("*.safetensors"))
        # stored in 16 bit: twice that in float32, and half as much again while it loads
        roomy = 3 * weights < available_memory_bytes()
        self.dtype = "float32" if roomy else "bfloat16"
        self._seq2seq = trained.seq2seq
        kind = AutoModelForSeq2SeqLM if trained.seq2seq else AutoModelForCausalLM
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if trained.onto == "nf4":
            options["quantization_config"] = _as_trained_in_4bit(options["dtype"])
        model: Any = kind.from_pretrained(trained.base, local_files_only=True, trust_remote_code=False, **options)
        if trained.adapter is not None:
            with importing():
                from peft import PeftModel
            model = PeftModel.from_pretrained(model, str(trained.adapter))
        self._model = model.eval()

    def logits(self, prompt: list[int], answer: list[int]) -> npt.NDArray[np.float32]:
        """Next-token logits (T, V) after each token that is read or written; of an encoder's reading there are none."""
        import torch

        with torch.inference_mode():
            if self._seq2seq:
                start = self._model.config.decoder_start_token_id
                output = self._model(
                    input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *answer]])
                )
            else:
                output = self._model(torch.tensor([prompt + answer]))
        result: npt.NDArray[np.float32] = output.logits[0].float().numpy()
        return result


def _as_trained_in_4bit(dtype: Any) -> Any:
    """bitsandbytes' own NF4, as QLoRA computes with it."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
