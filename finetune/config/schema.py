"""The recipe: all settings of a training, as one validated YAML file.

The help text of a field is its `description`; it is written here and nowhere else.
"""

import math
from typing import Any, Literal

from pydantic import Field, FiniteFloat, NaiveDatetime, PositiveFloat, PositiveInt, model_validator

from finetune.config.data import DataSection
from finetune.config.row_limits import LongRows, RowLimits
from gladstone.chat.named_templates import read_template
from gladstone.config import Config
from gladstone.errors import ConfigError


class BaseSection(Config):
    """The base model."""

    model: str = Field(description="'embedded:smollm2-135m-instruct', a local folder, or a Hub id 'owner/model'")
    license: str | None = Field(
        None, description="license of the model, such as apache-2.0; null: the one on its model card"
    )
    load_in_4bit: bool = Field(
        True, description="hold the frozen weights in 4 bit, NF4 (QLoRA); false: in 16 or 32 bit (LoRA)"
    )
    chat_template: str | None = Field(
        None,
        description="chat template for a model that has none: a Jinja file, or 'template:NAME' for one that comes with "
        "Gladstone; it is stored with the adapter",
    )
    template_date: NaiveDatetime | None = Field(
        None,
        description="time given to a chat template that writes the current date (such as Llama 3.2's), for example "
        "2026-11-30 or 2026-11-30T09:30:00; null: when the run begins. It is stored with the run",
    )
    max_tokens: int = Field(
        1024, ge=16, description="longest row in tokens, at most the context of the base; longer rows are reported"
    )
    max_target_tokens: PositiveInt | None = Field(
        None,
        description="longest answer in tokens of an encoder–decoder model (T5), whose questions have max_tokens; null: "
        "max_tokens",
    )
    long_rows: LongRows = Field(
        "drop",
        description="longer rows: drop them, cut the start of their prompt (its contexts), or cut the end of their "
        "answer",
    )


class HubFacts(Config):
    """Facts about the base model on the Hub; a test compares the recipe's settings with them."""

    architecture: str = Field(description="class of the model in transformers")
    parameters: PositiveFloat = Field(description="number of weights")
    layers: PositiveInt = Field(description="number of blocks, encoder and decoder together")
    width: PositiveInt = Field(description="hidden size")
    vocabulary: PositiveInt = Field(description="tokens in the vocabulary: rows of the embedding")
    context_tokens: PositiveInt = Field(description="longest context the model was trained on")
    linear: tuple[str, ...] = Field(description="names of the linear layers, as lora.targets may name them")
    rows: PositiveInt | None = Field(None, description="rows of the published dataset")


class LoraSection(Config):
    """The LoRA adapter."""

    rank: PositiveInt = Field(16, description="rank r of the factors A and B")
    alpha: PositiveFloat = Field(16, description="scale of the update: alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training")
    rslora: bool = Field(False, description="scale the update by alpha / sqrt(rank) instead (rsLoRA)")
    dora: bool = Field(False, description="train magnitude and direction of the weights apart (DoRA)")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"] = Field(
        "default",
        description="initial values of A and B; pissa and olora take principal directions out of the base's weights",
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers to adapt",
    )

    @property
    def changes_base(self) -> bool:
        """True if the initial adapter is subtracted from the base's weights."""
        return self.init.startswith(("pissa", "olora"))

    @property
    def peft_settings(self) -> dict[str, Any]:
        """The arguments of PEFT's LoraConfig."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.targets),
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "init_lora_weights": True if self.init == "default" else self.init,
        }


class TrainingSection(Config):
    """The optimisation: learning rate, length, batches, validation and checkpoints."""

    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate")
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
        "warmup_stable_decay", "constant", "constant_with_warmup",
    ] = Field("linear", description="learning-rate schedule, by its transformers name")  # fmt: skip
    schedule_settings: dict[str, FiniteFloat] = Field(
        {}, description="other arguments of the schedule, by their transformers names: num_cycles, power, min_lr_rate …"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps with warm-up of the learning rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the adapter's parameters")
    optimizer: str = Field("adamw_torch_fused", description="optimizer, by its transformers name")
    loraplus_ratio: PositiveFloat | None = Field(
        None, description="LoRA+: learning rate of the factors B as a multiple of that of A, 16 as published; null: 1"
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="maximum norm of the gradients; larger ones are clipped")
    epochs: PositiveFloat | None = Field(
        None, description="passes over the training rows; null: 1, unless max_steps is set"
    )
    max_steps: PositiveInt | None = Field(None, description="optimizer steps of the whole run, in place of epochs")
    batch_size: PositiveInt = Field(8, description="rows in a micro-batch")
    accumulation: PositiveInt = Field(1, description="micro-batches per optimizer step (gradient accumulation)")
    batch_tokens: PositiveInt | None = Field(
        None,
        description="maximum tokens in a micro-batch, whatever its rows; null: batch_size rows of the longest length",
    )
    group_by_length: bool | Literal["auto"] = Field(
        "auto",
        description="group rows of similar length into steps; auto: only where rows are padded, which it speeds up",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations to save memory; auto: only if they do not fit"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the decoder's layers on a CPU; auto: only if the run is long enough to save time"
    )
    evaluations: int = Field(4, ge=1, description="number of validations during the run")
    samples: int = Field(
        0, ge=0, le=100, description="validation rows answered at each validation; the answers are shown and scored"
    )
    sample_tokens: PositiveInt = Field(64, description="maximum tokens of such an answer")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="trackers that receive the metrics; nothing is sent to any tracker not named here"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after this many validations without a lower loss; null: train to the end"
    )
    final: Literal["best", "last"] = Field(
        "best", description="keep the adapter with the lowest validation loss, or that of the last step"
    )
    checkpoint_minutes: PositiveFloat = Field(
        10, description="minutes between checkpoints: what a killed run loses at most"
    )
    checkpoint_steps: PositiveInt | None = Field(
        None, description="steps between checkpoints, in place of checkpoint_minutes"
    )
    keep_checkpoints: PositiveInt = Field(2, description="number of checkpoints kept besides the best one")
    process_timeout_minutes: PositiveFloat = Field(
        30,
        description="minutes that the processes of a training on several GPUs wait for each other in a step; the first "
        "one may prepare the rows for as long as it takes",
    )
    seed: int = Field(0, description="seed of the initial adapter, the order of rows and dropout")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSection":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"epochs={self.epochs:g} and max_steps={self.max_steps} both set the length of the training"
            )
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step: the effective batch size."""
        return self.batch_size * self.accumulation

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run, for this many steps in an epoch."""
        return self.max_steps or math.ceil((self.epochs or 1.0) * steps_per_epoch)


class Recipe(Config):
    """All settings of a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the run folder and of the files"
    )
    description: str = Field("", description="one line for `finetune recipes`")
    hub: HubFacts | None = Field(None, description="facts about the base model, for estimates before it is downloaded")
    base: BaseSection
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()

    @property
    def limits(self) -> RowLimits:
        """Which turns of a row are scored, and how long it and its reasoning may be."""
        base = self.base
        return RowLimits(
            base.max_tokens, base.long_rows, self.data.reasoning_tokens, base.max_target_tokens, self.data.train
        )

    @property
    def template_name(self) -> str:
        """The model or file whose chat template is used, for messages."""
        return self.base.chat_template or self.base.model

    def own_template(self) -> str | None:
        """The source of base.chat_template, None if the model's own is used. Raises ConfigError if there is none."""
        if self.base.chat_template is None:
            return None
        try:
            return read_template(self.base.chat_template).source
        except ConfigError as error:
            raise ConfigError(f"base.chat_template: {error}") from None
