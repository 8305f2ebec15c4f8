"""The trained model in torch, the reference of a proof. Names torch, transformers and accelerate.

The adapter is applied as in training, not merged: in a model with tied embedding and head, PEFT's merge would change
both where training changed one.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.proof.trained import Trained
from export.tensors.safetensors_io import DTYPES
from export.torch_model.adapted import adapted, copied_modules
from export.torch_model.layer_weights import LayerWeights
from export.torch_model.placement import Memory, Placement, batch_tokens, place_model
from export.torch_model.size import stored_dtype
from gladstone.process.import_without_gc import import_without_gc

TEXTS_AT_ONCE = 8


def place_reference(trained: Trained, memory: Memory | None = None) -> Placement:
    """Where the reference computes. Raises UnsupportedError if there is too little memory for it."""
    return place_model(trained.base, trained.adapter, in_4bit=trained.onto == "nf4", memory=memory)


class Reference:
    """Base and adapter as PEFT runs them, in float32; where memory is short, layer by layer."""

    dtype = "float32"

    def __init__(self, trained: Trained, placement: Placement | None = None) -> None:
        """Raises UnsupportedError if there is too little memory."""
        self.placement = placement or place_reference(trained)
        self._seq2seq = trained.seq2seq
        self._cache: Any = None
        model = _load(trained.base, in_4bit=trained.onto == "nf4", seq2seq=trained.seq2seq)
        weights = LayerWeights(model, copied_modules(trained.adapter) if trained.adapter else ())
        if trained.adapter is not None:
            model = adapted(model, trained.base, trained.adapter)
        weights.put_back(model, self.placement.device, streamed=self.placement.streamed)
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
            output = self._model(torch.tensor([tokens], device=self.placement.device), use_cache=True)
        cache = output.past_key_values
        self._cache = cache if type(cache) is DynamicCache else None  # other kinds of cache cannot be shared
        result: npt.NDArray[np.float32] = output.logits[0].float().cpu().numpy()
        return result

    def logits(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], shared: int = 0
    ) -> list[npt.NDArray[np.float32]]:
        """Next-token logits (T, V) float32 of each prompt with its answer, after every token but the last.

        The `shared` prefix tokens and the encoder's tokens have no rows. Texts of similar length run in one
        right-padded batch.
        """
        found: dict[int, npt.NDArray[np.float32]] = {}
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        for places in self._batches(lengths):
            together = self._together(
                [prompts[place] for place in places], [answers[place] for place in places], shared
            )
            found |= dict(zip(places, together, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of texts of similar length; where layers are streamed, as many together as memory allows."""
        most = len(lengths) if self.placement.streamed else TEXTS_AT_ONCE
        tokens = batch_tokens(self._model.config.get_text_config(decoder=True).vocab_size)
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) == most or (len(batch) + 1) * lengths[place] > tokens):
                yield batch
                batch = []
            batch.append(place)
        yield batch

    def _together(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], shared: int
    ) -> list[npt.NDArray[np.float32]]:
        import torch

        texts = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
        skipped = shared
        if self._seq2seq:
            start = self._model.config.decoder_start_token_id
            texts = [[start, *answer[:-1]] for answer in answers]
            inputs = self._padded(prompts) | {"decoder_input_ids": self._padded(texts)["input_ids"]}
        elif shared and self._cache is not None:
            texts, skipped = [text[shared:] for text in texts], 0
            inputs = self._padded(texts, shared) | {"past_key_values": self._opened(len(texts))}
        else:
            inputs = self._padded(texts)
        with torch.inference_mode():
            logits = self._model(**inputs).logits
        return [row[skipped : len(text)].float().cpu().numpy() for row, text in zip(logits, texts, strict=True)]

    def _padded(self, texts: Sequence[list[int]], before: int = 0) -> dict[str, Any]:
        """Texts as input_ids (B, T) int64, right-padded; with a mask (B, before + T) if their lengths differ."""
        import torch

        longest, device = max(map(len, texts)), self.placement.device
        ids = [[*text, *[0] * (longest - len(text))] for text in texts]
        found = {"input_ids": torch.tensor(ids, device=device)}
        if any(len(text) < longest for text in texts):
            masks = [[1] * (before + len(text)) + [0] * (longest - len(text)) for text in texts]
            found["attention_mask"] = torch.tensor(masks, device=device)
        return found

    def _opened(self, count: int) -> Any:
        """The KV cache of the shared prefix, repeated `count` times."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def _load(base: Path, *, in_4bit: bool, seq2seq: bool) -> Any:
    """The model as stored, its weights mapped from their files; in 4 bit as QLoRA loads it."""
    with import_without_gc():
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": torch.float32 if in_4bit else getattr(torch, DTYPES[stored_dtype(base)])}
    if in_4bit:
        options |= {"quantization_config": _as_trained_in_4bit(torch.float32), "device_map": "cpu"}
    model = kind.from_pretrained(base, local_files_only=True, trust_remote_code=False, **options)
    if options["dtype"] != torch.float32:
        _compute_buffers(model)
    return model


def _compute_buffers(model: Any) -> None:
    """Compute in float32 what a model keeps beside its weights (as Gemma's scale of the embedding)."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        precise = type(model)(copy.deepcopy(model.config))
    for name, buffer in precise.named_buffers():
        module, _, last = name.rpartition(".")
        if last in model.get_submodule(module)._non_persistent_buffers_set:
            setattr(model.get_submodule(module), last, buffer)


def _as_trained_in_4bit(dtype: Any) -> Any:
    """NF4 as QLoRA configures it in bitsandbytes."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
