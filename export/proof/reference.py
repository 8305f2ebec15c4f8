"""The trained model in torch, the reference of a proof. Names torch and transformers.

The adapter is applied as in training, not merged: in a model with tied embedding and head, PEFT's merge would change
both where training changed one.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from export.proof.adapted import adapted
from export.proof.trained import Trained
from gladstone.machine.host import available_memory_bytes
from gladstone.models.base_model import weights_files
from gladstone.process.import_without_gc import import_without_gc

TEXTS_AT_ONCE = 8


class Reference:
    """Base and adapter as PEFT runs them, in float32 if memory allows, else in bfloat16."""

    def __init__(self, trained: Trained) -> None:
        with import_without_gc():
            import torch
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        weights = sum(path.stat().st_size for path in weights_files(trained.base))
        # float32 takes twice the 16-bit weights, and half as much again while loading
        roomy = 3 * weights < available_memory_bytes()
        self.dtype = "float32" if roomy else "bfloat16"
        self._seq2seq = trained.seq2seq
        self._cache: Any = None
        kind = AutoModelForSeq2SeqLM if trained.seq2seq else AutoModelForCausalLM
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if trained.onto == "nf4":
            options["quantization_config"] = _as_trained_in_4bit(options["dtype"])
        model: Any = kind.from_pretrained(trained.base, local_files_only=True, trust_remote_code=False, **options)
        if trained.onto == "nf4":
            # training computes with the dequantised NF4 weights; in evaluation bitsandbytes takes a kernel that
            # rounds to bfloat16 on processors that have it, whatever type is requested
            model = model.dequantize(dtype=options["dtype"])
        if trained.adapter is not None:
            model = adapted(model, trained.base, trained.adapter)
        self._model = model.eval()

    @property
    def model(self) -> Any:
        """The torch module."""
        return self._model

    def opening(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits (T, V) float32 of the shared prefix; `logits` then continues from its KV cache."""
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            output = self._model(torch.tensor([tokens]), use_cache=True)
        cache = output.past_key_values
        self._cache = cache if type(cache) is DynamicCache else None  # other kinds of cache cannot be shared
        result: npt.NDArray[np.float32] = output.logits[0].float().numpy()
        return result

    def logits(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], shared: int = 0
    ) -> list[npt.NDArray[np.float32]]:
        """Next-token logits (T, V) float32 of each prompt with its answer, after every token but the last.

        The `shared` prefix tokens and the encoder's tokens have no rows. Texts of similar length run in one
        right-padded batch.
        """
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]) + len(answers[place]))
        found: dict[int, npt.NDArray[np.float32]] = {}
        for start in range(0, len(order), TEXTS_AT_ONCE):
            places = order[start : start + TEXTS_AT_ONCE]
            together = self._together(
                [prompts[place] for place in places], [answers[place] for place in places], shared
            )
            found |= dict(zip(places, together, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _together(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], shared: int
    ) -> list[npt.NDArray[np.float32]]:
        import torch

        texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
        skipped = shared
        if self._seq2seq:
            start = self._model.config.decoder_start_token_id
            texts = [[start, *answer[:-1]] for answer in answers]
            inputs = _padded(prompts) | {"decoder_input_ids": _padded(texts)["input_ids"]}
        elif shared and self._cache is not None:
            texts, skipped = [text[shared:] for text in texts], 0
            inputs = _padded(texts, shared) | {"past_key_values": self._opened(len(texts))}
        else:
            inputs = _padded(texts)
        with torch.inference_mode():
            logits = self._model(**inputs).logits
        return [row[skipped : len(text)].float().numpy() for row, text in zip(logits, texts, strict=True)]

    def _opened(self, count: int) -> Any:
        """The KV cache of the shared prefix, repeated `count` times."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def _padded(texts: Sequence[list[int]], before: int = 0) -> dict[str, Any]:
    """Texts as input_ids (B, T) int64, right-padded; with a mask (B, before + T) if their lengths differ."""
    import torch

    longest = max(map(len, texts))
    found = {"input_ids": torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])}
    if any(len(text) < longest for text in texts):
        masks = [[1] * (before + len(text)) + [0] * (longest - len(text)) for text in texts]
        found["attention_mask"] = torch.tensor(masks)
    return found


def _as_trained_in_4bit(dtype: Any) -> Any:
    """NF4 as QLoRA configures it in bitsandbytes."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
