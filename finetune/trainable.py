"""What both ways to train share: the model with its adapter, batches, losses and the record of each step.

Names torch, datasets, transformers, safetensors. Everything that the libraries print goes to the run's log; what
matters comes back through `on_step`.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.labels import IGNORED, Example
from finetune.recipe import Recipe
from gladstone.errors import DataError, UnsupportedError
from gladstone.host import available_memory_bytes, cache_dir

LOGIT_BYTES = 256 << 20  # evaluation holds at most this much of logits
ACTIVATION_BYTES_PER_UNIT = 72  # per token, layer and hidden unit, fp32, measured on SmolLM2-135M; half in 16 bit

OnStep = Callable[["StepStats", int], None]


@dataclass(frozen=True)
class StepStats:
    """One optimizer step; the loss is the mean over the step's target tokens, `padding_share` is of all tokens."""

    step: int
    loss_nats_per_token: float
    learning_rate: float
    grad_norm: float
    target_tokens: int
    tokens: int
    padding_share: float
    step_s: float


@dataclass
class Trainable:
    """A base model with a fresh adapter; `seq2seq` where an encoder reads and a decoder writes."""

    model: Any
    pad_id: int
    checkpointing: bool
    seq2seq: bool = False

    @property
    def device_kind(self) -> str:
        """'cpu', 'cuda', …"""
        return str(self.model.device.type)

    @property
    def dtype(self) -> str:
        """The type that activations are computed in."""
        return str(self.model.dtype).removeprefix("torch.")


def prepare_environment() -> None:
    """Settings that libraries read when they are imported; call it before anything imports torch.

    Unsloth sends no statistics and keeps the code that it compiles in our cache.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth_compiled"))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other beside any other work


def collate(examples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """A Batch: input_ids and attention_mask (B, T), labels (B, L), padded on the right, -100 in padded labels.

    Of a decoder L is T; of an encoder and decoder it is the length of the longest answer.
    """
    import torch

    def padded(name: str, filler: int) -> list[list[int]]:
        width = max(len(example[name]) for example in examples)
        return [[*example[name], *([filler] * (width - len(example[name])))] for example in examples]

    batch = {
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": [[1] * len(example["input_ids"]) for example in examples],
    }
    width = len(batch["input_ids"][0])
    batch["attention_mask"] = [[*mask, *([0] * (width - len(mask)))] for mask in batch["attention_mask"]]
    return {name: torch.tensor(rows, dtype=torch.long) for name, rows in batch.items()}


def measure_loss(
    trainable: Trainable, examples: Sequence[Example], on_part: Callable[[float], None] | None = None
) -> float:
    """Mean nats per target token over all examples, batched by length. Leaves the model in training mode."""
    import torch

    model = trainable.model
    vocabulary = model.get_input_embeddings().weight.shape[0]
    budget = max(1, LOGIT_BYTES // (4 * vocabulary))
    nats, tokens, seen = 0.0, 0, 0
    model.eval()
    with torch.no_grad():
        for batch in _batches_within(examples, budget):
            rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in batch]
            tensors = {name: value.to(model.device) for name, value in collate(rows, trainable.pad_id).items()}
            logits, labels = _aligned(trainable, tensors)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            nats += float(loss)
            tokens += int((labels != IGNORED).sum())
            seen += len(batch)
            if on_part:
                on_part(seen / len(examples))
    model.train()
    return nats / tokens


def _aligned(trainable: Trainable, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """Logits and the labels that they predict: a decoder's position predicts the next one, seq2seq shifts by itself."""
    if trainable.seq2seq:
        return trainable.model(**tensors).logits.float(), tensors["labels"]
    labels = tensors.pop("labels")
    return trainable.model(**tensors).logits[:, :-1].float(), labels[:, 1:]


def save_adapter(trainable: Trainable, base_name: str, folder: Path) -> None:
    """Write the adapter as safetensors; its config names the base as the recipe does, not this machine's path."""
    from safetensors import SafetensorError

    try:
        trainable.model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:  # how a full disk shows itself there
        raise OSError(str(error)) from error
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def trainer_arguments(trainable: Trainable, recipe: Recipe, work: Path) -> dict[str, Any]:
    """The recipe in the words of transformers' TrainingArguments."""
    training = recipe.training
    on_gpu = trainable.device_kind == "cuda"
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optimizer,
        "bf16": trainable.dtype == "bfloat16",
        "fp16": on_gpu and trainable.dtype == "float16",
        "gradient_checkpointing": trainable.checkpointing,
        "train_sampling_strategy": "group_by_length" if training.group_by_length else "random",
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": training.seed,
    }


def counting_trainer(
    kind: Any, trainable: Trainable, examples: Sequence[Example], arguments: Any, on_step: OnStep
) -> Any:
    """A trainer of the class `kind` that tells each step's figures."""
    from datasets import Dataset
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        """Turns the trainer's log into StepStats."""

        def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            self.begin_s = time.monotonic()

        def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
            self.step_s = time.monotonic() - self.begin_s

        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                on_step(_stats(state.global_step, logs, trainer.counted, self.step_s), state.max_steps)

    class CountingTrainer(kind):  # type: ignore[misc]
        """The trainer, counting the tokens of each step."""

        counted: tuple[int, int, int] = (0, 0, 0)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, items = super().get_batch_samples(*args, **kwargs)
            self.counted = _count(samples, 0 if trainable.seq2seq else 1)
            return samples, items

    rows = [{"input_ids": list(example.input_ids), "labels": list(example.labels)} for example in examples]
    trainer = CountingTrainer(
        model=trainable.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda batch: collate(batch, trainable.pad_id),
        callbacks=[Recorder()],
    )
    return trainer


def _stats(step: int, logs: dict[str, Any], counted: tuple[int, int, int], step_s: float) -> StepStats:
    loss = float(logs["loss"])
    targets, tokens, slots = counted
    if not math.isfinite(loss):
        raise DataError(f"the loss of step {step} is {loss}: lower training.learning_rate.")
    if targets == 0:
        raise DataError(f"step {step} has no scored token: nothing can be learnt from it.")
    return StepStats(
        step=step,
        loss_nats_per_token=loss,
        learning_rate=float(logs["learning_rate"]),
        grad_norm=float(logs["grad_norm"]),
        target_tokens=targets,
        tokens=tokens,
        padding_share=1 - tokens / slots,
        step_s=step_s,
    )


def _count(samples: Sequence[dict[str, Any]], first_label: int) -> tuple[int, int, int]:
    """Target tokens, real tokens and slots of a step's micro-batches; of a decoder nothing predicts the first label."""
    targets = sum(int((batch["labels"][:, first_label:] != IGNORED).sum()) for batch in samples)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in samples)
    return targets, tokens, sum(batch["input_ids"].numel() for batch in samples)


def check_targets(model: Any, recipe: Recipe) -> None:
    """Raises UnsupportedError that lists the model's layers if it has none of a target's name."""
    linear = ("Linear", "Linear4bit", "Conv1D")
    names = {name.rpartition(".")[2] for name, each in model.named_modules() if type(each).__name__ in linear}
    missing = [target for target in recipe.lora.targets if target not in names]
    if missing:
        raise UnsupportedError(
            f"lora.targets: {recipe.base.model} has no layers called {', '.join(missing)}; its layers are called "
            f"{', '.join(sorted(names - {'lm_head'}))}."
        )


def needs_checkpointing(model: Any, recipe: Recipe, longest_tokens: int) -> bool:
    """True where the activations of the largest micro-batch would take more than half of the free memory."""
    import torch

    wish = recipe.training.gradient_checkpointing
    if wish != "auto":
        return wish == "on"
    config = model.config
    unit_bytes = ACTIVATION_BYTES_PER_UNIT if model.dtype == torch.float32 else ACTIVATION_BYTES_PER_UNIT // 2
    tokens = recipe.training.batch_size * longest_tokens
    needed = tokens * config.num_hidden_layers * config.hidden_size * unit_bytes
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory_bytes()
    return bool(needed > free // 2)


def _batches_within(examples: Sequence[Example], budget_tokens: int) -> list[list[Example]]:
    """Examples sorted by length, cut into batches whose padded size stays within the budget (one example at least)."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: len(example.input_ids)):
        if batches and (len(batches[-1]) + 1) * len(example.input_ids) <= budget_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches
