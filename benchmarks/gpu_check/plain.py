"""The other side: plain transformers, PEFT and bitsandbytes, without Unsloth.

Names torch, transformers, peft, safetensors.
Gradients and losses are computed in float32, as the reference; the race is run in the precision of training.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import device
from benchmarks.gpu_check.families import FAMILIES, Rows, write_base
from benchmarks.gpu_check.results import CannotRunError
from benchmarks.gpu_check.side import serve
from benchmarks.gpu_check.subject import compared, gradients_of
from finetune.tokens.examples import IGNORED, Example

MAX_NORM, LEARNING_RATE = 1.0, 1e-3
HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Plain:
    """The orders of the other side."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._name, self._folder, self._tiny = settings["family"], Path(settings["folder"]), bool(settings["tiny"])
        self._family = FAMILIES[self._name]
        self._raced: tuple[Any, Any] | None = None

    def answer(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order: a method of this class."""
        if order == "turn":
            return dict(self.turn(**arguments))
        self._raced = None
        try:
            return dict(getattr(self, order)(**arguments))
        finally:
            device.release()  # our side needs the memory

    def forget(self) -> dict[str, Any]:
        """Release the model."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The device."""
        return device.describe(tiny=self._tiny)

    def write(self) -> dict[str, Any]:
        """Write the base."""
        write_base(self._name, self._folder / "base", tiny=self._tiny)
        return {}

    def gradient(self, adapter: str, gradient: str) -> dict[str, Any]:
        """The loss of the rows in float32, and how far a gradient in a file is from it."""
        from safetensors.torch import load_file

        model, examples = self._load(adapter, "fp32"), self._rows(4, 128, even=False)
        loss = self._loss(model, examples)
        loss.backward()
        return {"loss": float(loss)} | compared(load_file(gradient), gradients_of(model))

    def steps(self, adapter: str, count: int) -> dict[str, Any]:
        """The losses of so many steps in float32."""
        model, examples = self._load(adapter, "fp32"), self._rows(8, 128, even=False)
        optimizer = self._optimizer(model)
        return {"losses": [self._step(model, optimizer, examples, nullcontext(), None)[0] for _ in range(count)]}

    def turn(self, adapter: str, precision: str, count: int) -> dict[str, Any]:
        """A turn of a race: as `Ours.turn`, in the precision of training."""
        import torch

        if self._raced is None:
            model = self._load(adapter, precision)
            self._raced = model, self._optimizer(model)
        model, optimizer = self._raced
        examples, kind = self._rows(4, 512), "cuda" if device.has_gpu() else "cpu"
        casting: AbstractContextManager[Any] = nullcontext()
        if precision != "fp32":
            casting = torch.autocast(kind, dtype=getattr(torch, HALF[precision]))
        scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16" and kind == "cuda")
        seconds: list[float] = []

        def race() -> None:
            seconds.extend(self._step(model, optimizer, examples, casting, scaler)[1] for _ in range(count))

        try:
            peak = device.peak_bytes(race)
        except torch.OutOfMemoryError:
            raise CannotRunError("plain transformers + PEFT run out of memory on these rows") from None
        tokens = sum(len(row.input_ids) + (len(row.labels) if self._family.encodes else 0) for row in examples)
        return {"seconds": seconds[1:], "tokens": tokens, "peak": peak}

    def _rows(self, count: int, tokens: int, *, even: bool = True) -> Sequence[Example]:
        vocabulary = self._family.chosen(tiny=self._tiny)["vocab_size"]
        return Rows(count, tokens, even).shrunk(tiny=self._tiny).examples(self._name, vocabulary)

    def _load(self, adapter: str, precision: str) -> Any:
        import torch
        import transformers
        from peft import PeftModel

        kind = transformers.AutoModelForSeq2SeqLM if self._family.encodes else transformers.AutoModelForCausalLM
        dtype = getattr(torch, HALF[precision])
        settings: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
        if device.has_gpu():
            settings["device_map"] = {"": 0}
            if self._family.four_bit:
                settings["quantization_config"] = transformers.BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=dtype,
                )  # fmt: skip
        model = kind.from_pretrained(self._folder / "base", **settings)
        model.config.use_cache = False
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return model.train()

    def _optimizer(self, model: Any) -> Any:
        import torch

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=device.has_gpu())

    def _loss(self, model: Any, examples: Sequence[Example]) -> Any:
        """The mean over the scored tokens, as transformers computes it from labels."""
        import torch

        def padded(rows: Sequence[Sequence[int]], filler: int) -> Any:
            width = max(map(len, rows))
            return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows]).to(model.device)

        ids = [example.input_ids for example in examples]
        targets = sum(example.target_tokens for example in examples)
        mask = padded([[1] * len(row) for row in ids], 0)
        labels = padded([example.labels for example in examples], IGNORED)
        counted = {} if self._family.encodes else {"num_items_in_batch": targets}  # T5 takes the mean by itself
        return model(input_ids=padded(ids, 0), attention_mask=mask, labels=labels, **counted).loss

    def _step(
        self, model: Any, optimizer: Any, examples: Sequence[Example], casting: AbstractContextManager[Any], scaler: Any
    ) -> tuple[float, float]:
        """One step: its loss, and its seconds."""
        import torch

        begin_s = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with casting:
            loss = self._loss(model, examples)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        value = float(loss)
        if device.has_gpu():
            torch.cuda.synchronize()
        return value, time.perf_counter() - begin_s


if __name__ == "__main__":
    serve(Plain)
