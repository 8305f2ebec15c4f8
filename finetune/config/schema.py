"""The recipe: everything that decides how an adapter comes out, as one checked YAML file.

A field's help text is its `description`; it is written here and nowhere else.
"""

import math
from typing import Any, Literal

from pydantic import Field, NaiveDatetime, PositiveFloat, PositiveInt, model_validator

from finetune.config.data import DataSection
from finetune.config.row_limits import LongRows, RowLimits
from gladstone.chat.named_templates import read_template
from gladstone.config import Config
from gladstone.errors import ConfigError


class BaseSection(Config):
    """The model to start from."""

    model: str = Field(description="'embedded:smollm2-135m-instruct', a local folder, or a Hub id 'owner/model'")
    license: str | None = Field(None, description="under which it may be used, as apache-2.0; null: as its card says")
    load_in_4bit: bool = Field(True, description="hold the frozen weights as NF4 (QLoRA); false: 16 or 32 bit (LoRA)")
    chat_template: str | None = Field(
        None,
        description="a Jinja file, or 'template:NAME' for one that comes with Gladstone, for a model that has no chat "
        "template; it is stored with the adapter",
    )
    template_date: NaiveDatetime | None = Field(
        None,
        description="what a chat template that writes today's date (Llama 3.2's) gets as the time while training, as "
        "2026-11-30 or 2026-11-30T09:30:00; null: when the run begins. It is stored with the run",
    )
    max_tokens: int = Field(1024, ge=16, description="longest row in tokens; how many rows are longer is told")
    max_target_tokens: PositiveInt | None = Field(
        None,
        description="longest answer of an encoder and decoder (T5); max_tokens is of its question; null: the same",
    )
    long_rows: LongRows = Field(
        "drop",
        description="leave longer rows out, cut the beginning of their question (contexts), or cut their answer, "
        "which then has no end",
    )


class HubFacts(Config):
    """What the base model on the Hub is like; a test holds the recipe's settings against it."""

    architecture: str = Field(description="its class in transformers")
    parameters: PositiveFloat = Field(description="number of weights")
    layers: PositiveInt = Field(description="blocks, encoder and decoder together")
    width: PositiveInt = Field(description="hidden size")
    vocabulary: PositiveInt = Field(description="rows of the embedding")
    context_tokens: PositiveInt = Field(description="longest text that it was made for")
    linear: tuple[str, ...] = Field(description="names of its linear layers, which lora.targets may name")
    rows: PositiveInt | None = Field(None, description="rows of the data set, as published")


class LoraSection(Config):
    """The adapter."""

    rank: PositiveInt = Field(16, description="rank r of the two factors")
    alpha: PositiveFloat = Field(16, description="strength: the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's input that is dropped while training")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="train the length of each weight's columns apart from their direction (DoRA)")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"] = Field(
        "default", description="how the factors begin; pissa and olora take the base's main directions out of it"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )

    @property
    def changes_base(self) -> bool:
        """True where the adapter's beginning is taken out of the base's weights."""
        return self.init.startswith(("pissa", "olora"))

    @property
    def peft_settings(self) -> dict[str, Any]:
        """The adapter in the words of PEFT's LoraConfig."""
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
    """The optimisation."""

    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate")
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
        "warmup_stable_decay", "constant", "constant_with_warmup",
    ] = Field("linear", description="how the learning rate falls")  # fmt: skip
    schedule_settings: dict[str, float] = Field(
        {}, description="what a schedule takes besides, by transformers' names: num_cycles, power, min_lr_rate …"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay on the adapter")
    optimizer: str = Field("adamw_torch_fused", description="optimizer by its transformers name")
    loraplus_ratio: PositiveFloat | None = Field(
        None, description="LoRA+: how many times the learning rate the factors B get, 16 as published; null: the same"
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    epochs: PositiveFloat | None = Field(
        None, description="passes over the training rows; null: 1, unless max_steps says how long"
    )
    max_steps: PositiveInt | None = Field(None, description="optimizer steps in all, in place of epochs")
    batch_size: PositiveInt = Field(8, description="rows in a micro-batch")
    accumulation: PositiveInt = Field(1, description="micro-batches in an optimizer step")
    batch_tokens: PositiveInt | None = Field(
        None, description="most tokens in a micro-batch, whatever its rows; null: batch_size rows of the longest length"
    )
    group_by_length: bool | Literal["auto"] = Field(
        "auto", description="make steps of rows of similar length; auto: only where rows are padded, since it is faster"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations to save memory; auto: only where memory does not allow otherwise"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the decoder's layers on a CPU; auto: where the run is long enough to pay it back"
    )
    evaluations: int = Field(4, ge=1, description="how often the validation loss is measured while training")
    samples: int = Field(
        0, ge=0, le=100, description="how many validation rows are answered at each evaluation, shown and scored"
    )
    sample_tokens: PositiveInt = Field(64, description="longest such answer")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="trackers that get the figures; only what is named here is ever sent anywhere"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after as many validations without a lower loss; null: train to the end"
    )
    final: Literal["best", "last"] = Field(
        "best", description="keep the adapter of the lowest validation loss, or that of the last step"
    )
    checkpoint_minutes: PositiveFloat = Field(10, description="time between checkpoints: what a killed session loses")
    checkpoint_steps: PositiveInt | None = Field(None, description="steps between checkpoints, in place of minutes")
    keep_checkpoints: PositiveInt = Field(2, description="how many checkpoints are kept, besides the best one")
    seed: int = Field(0, description="decides the adapter's start, the order of rows and dropout")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSection":
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(f"epochs={self.epochs:g} and max_steps={self.max_steps} both say how long to train")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step: the effective batch size."""
        return self.batch_size * self.accumulation

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or math.ceil((self.epochs or 1.0) * steps_per_epoch)


class Recipe(Config):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run folder and the files")
    description: str = Field("", description="one line for the list of recipes")
    hub: HubFacts | None = Field(None, description="facts about the base model, for the list of recipes")
    base: BaseSection
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()

    @property
    def limits(self) -> RowLimits:
        """Which turns are scored, and what becomes of long rows and of reasoning."""
        base = self.base
        return RowLimits(
            base.max_tokens, base.long_rows, self.data.reasoning_tokens, base.max_target_tokens, self.data.train
        )

    @property
    def template_name(self) -> str:
        """Whose chat template is used, for messages."""
        return self.base.chat_template or self.base.model

    def own_template(self) -> str | None:
        """The template that base.chat_template names, None where the model's own is used. Raises ConfigError."""
        if self.base.chat_template is None:
            return None
        try:
            return read_template(self.base.chat_template).source
        except ConfigError as error:
            raise ConfigError(f"base.chat_template: {error}") from None
