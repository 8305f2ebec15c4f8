"""One family in one precision, trained by our own functions on the device. Names torch, safetensors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import device
from benchmarks.gpu_check.families import FAMILIES, Rows, make_recipe
from finetune.config.schema import Recipe
from finetune.model.load import load_trainable
from finetune.model.trainable import Trainable, prepare_environment, save_adapter
from finetune.monitor.metrics_log import History
from finetune.tokens.examples import Example
from finetune.train.evaluation import Validator
from finetune.train.job import Job
from finetune.train.loop import Loop
from finetune.train.stop_conditions import CallLimits
from gladstone.commands.progress import Silent
from gladstone.models.base_model import resolve_base
from gladstone.models.tokenizer import load_tokenizer

WAYS = {"off": False, "standard": True, "unsloth": "unsloth"}  # of checkpointing, as Unsloth's loader takes them
SPREAD = 0.02  # of the random factors B: with B = 0 no gradient would reach A


class Subject:
    """A base, the recipe that trains it, and the model once it is loaded."""

    def __init__(self, name: str, precision: str, folder: Path, *, tiny: bool) -> None:
        """`folder` holds the base; what checks write goes beside it."""
        self.name, self.precision, self.folder, self.tiny = name, precision, folder, tiny
        prepare_environment()
        self.family, self.on_gpu = FAMILIES[name], device.has_gpu()
        if not self.family.encodes:
            device.prepare_unsloth(precision)
        self.base = resolve_base(str(folder / "base"), Silent())
        self.pad_id = load_tokenizer(self.base.folder).padding_id
        self.vocabulary = int(self.base.config["vocab_size"])
        self._loaded: Trainable | None = None

    @property
    def four_bit(self) -> bool:
        """True if its base is held in NF4; on the processor Unsloth's CUDA classes hold 16 bit."""
        return self.family.four_bit and self.on_gpu

    def recipe(self, **training: Any) -> Recipe:
        """The family's recipe; keyword arguments change its training."""
        return make_recipe(self.name, self.base.folder, four_bit=self.four_bit, fused=self.on_gpu, **training)

    def rows(self, count: int, tokens: int, *, even: bool = True) -> Sequence[Example]:
        """Rows of random tokens."""
        return Rows(count, tokens, even).shrunk(tiny=self.tiny).examples(self.name, self.vocabulary)

    def load(self, examples: Sequence[Example], way: str = "off", **training: Any) -> Trainable:
        """The model from its files, with the same random adapter each time, checkpointed in one of the WAYS."""
        self.forget()
        wish = "off" if way == "off" else "on"
        with self._checkpointed(way):
            recipe = self.recipe(gradient_checkpointing=wish, **training)
            self._loaded = load_trainable(self.base, recipe, self.pad_id, examples)
        randomise_adapter(self._loaded.model)
        return self._loaded

    def forget(self) -> None:
        """Release the model."""
        self._loaded = None
        device.release()

    @contextmanager
    def _checkpointed(self, way: str) -> Iterator[None]:
        """Let Unsloth's loader take this way of checkpointing, whichever the device would choose."""
        if self.family.encodes:
            yield
            return
        from unsloth import FastLanguageModel

        usual = FastLanguageModel.get_peft_model

        def chosen(*arguments: Any, **named: Any) -> Any:
            return usual(*arguments, **(named | {"use_gradient_checkpointing": WAYS[way]}))

        FastLanguageModel.get_peft_model = staticmethod(chosen)
        try:
            yield
        finally:
            FastLanguageModel.get_peft_model = staticmethod(usual)

    def train(self, trainable: Trainable, examples: Sequence[Example], recipe: Recipe) -> History:
        """Our loop from its first step to its end."""
        job = Job(trainable, examples, recipe, self.folder / "loop", {}, lambda rows: [f"row {row}" for row in rows])
        loop = Loop(job, Validator(trainable, (), recipe.training), CallLimits())
        try:
            return loop.run().history
        finally:
            loop.close()

    def gradient(
        self, trainable: Trainable, examples: Sequence[Example], **training: Any
    ) -> tuple[History, dict[str, Any]]:
        """The gradient that the loop takes of all rows, unscaled and not clipped, and the history of its steps.

        In float16 the scaler skips the first steps; the learning rate is too small to change anything.
        """
        steps = 4 if self.precision == "fp16" else 1
        fixed = {"learning_rate": 1e-12, "max_grad_norm": 1e9, "max_steps": steps, "batch_size": len(examples)}
        history = self.train(trainable, examples, self.recipe(**(fixed | training)))
        return history, gradients_of(trainable.model)

    def save_adapter(self, trainable: Trainable) -> Path:
        """The adapter's folder, as a run writes it."""
        folder = self.folder / "adapter"
        if not folder.exists():
            save_adapter(trainable, self.base.name, folder)
        return folder


def randomise_adapter(model: Any) -> None:
    """Fill the factors B, which begin as zeros."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD)


def gradients_of(model: Any) -> dict[str, Any]:
    """The gradients of the adapter by the names of its parameters: float32 on the CPU."""
    return {
        name: parameter.grad.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def compared(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The cosine of two gradients, and their difference over the second's norm. Raises ValueError if names differ."""
    import torch

    if ours.keys() != other.keys():
        raise ValueError(f"gradients of other layers: {sorted(ours.keys() ^ other.keys())[:2]}")
    left, right = (torch.cat([each[name].double().flatten() for name in sorted(ours)]) for each in (ours, other))
    return {
        "cosine": float(left @ right / (left.norm() * right.norm())),
        "difference": float((left - right).norm() / right.norm()),
    }
