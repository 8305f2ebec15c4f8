"""The recipe: everything that decides how an adapter comes out, as one checked YAML file.

A field's help text is its `description`; it is written here and nowhere else.
"""

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from gladstone.config import Config, apply_overrides, build_config, read_yaml
from gladstone.errors import ConfigError
from gladstone.formats import COLUMNS, FORMAT_NAMES, Layout, find_layout
from gladstone.rows import ENDINGS

DEFAULT_RECIPE = "smollm2-135m-medical"
SAMPLE_PREFIX = "sample:"


class BaseSection(Config):
    """The model to start from."""

    model: str = Field(description="'embedded:smollm2-135m-instruct', a local folder, or a Hub id 'owner/model'")
    load_in_4bit: bool = Field(True, description="hold the frozen weights as NF4 (QLoRA); false: 16 or 32 bit (LoRA)")
    chat_template: str | None = Field(None, description="a Jinja file, for a model that has no chat template")
    max_tokens: int = Field(1024, ge=16, description="longest row in tokens; longer rows are dropped and counted")


class Source(Config):
    """One data file."""

    path: str = Field(description=f"{ENDINGS}, or 'sample:NAME' for the rows that come with Gladstone")
    format: str = Field("auto", description=f"row format: {', '.join(FORMAT_NAMES)}")
    columns: dict[str, str] | None = Field(
        None, description=f"for a layout of its own: which column is which of {', '.join(COLUMNS)}"
    )

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name not in FORMAT_NAMES:
            raise ValueError(f"unknown data format {name!r}; known: {', '.join(FORMAT_NAMES)}")
        return name

    def file(self) -> Path:
        """The file on disk. Raises ConfigError for an unknown sample."""
        if not self.path.startswith(SAMPLE_PREFIX):
            return Path(self.path).expanduser()
        name = self.path.removeprefix(SAMPLE_PREFIX)
        path = Path(str(resources.files("finetune"))) / "samples" / f"{name}.jsonl"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
            raise ConfigError(f"no sample called {name!r}; there are: {known}.")
        return path

    def layout(self) -> Layout:
        """How its rows are read. Raises ConfigError or DataError if that cannot be told."""
        return find_layout(self.file(), self.format, self.columns)


class DataSection(Config):
    """The rows, and how they are divided."""

    sources: tuple[Source, ...] = Field(min_length=1, description="data files, read in this order")
    skip_bad: bool = Field(False, description="leave out rows that cannot be read; the manifest has their number")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="share of the rows watched while training")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="share of the rows kept for the benchmark, never seen")
    max_rows: PositiveInt | None = Field(None, description="use at most this many rows, drawn with the seed")
    seed: int = Field(42, description="decides the division and the draw of rows")


class LoraSection(Config):
    """The adapter."""

    rank: PositiveInt = Field(16, description="rank r of the two factors")
    alpha: PositiveFloat = Field(16, description="strength: the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's input that is dropped while training")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )


class TrainingSection(Config):
    """The optimisation."""

    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="how the learning rate falls"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay on the adapter")
    optimizer: str = Field("adamw_torch", description="optimizer by its transformers name")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    epochs: PositiveFloat = Field(1.0, description="passes over the training rows; ignored where max_steps is set")
    max_steps: PositiveInt | None = Field(None, description="optimizer steps")
    batch_size: PositiveInt = Field(8, description="rows in a micro-batch")
    accumulation: PositiveInt = Field(1, description="micro-batches in an optimizer step")
    group_by_length: bool = Field(True, description="batch rows of similar length: little padding, much speed")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations to save memory; auto: only where memory does not allow otherwise"
    )
    evaluations: int = Field(4, ge=1, description="how often the validation loss is measured while training")
    seed: int = Field(0, description="decides the adapter's start, the order of rows and dropout")


class Recipe(Config):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the run folder and the files")
    description: str = Field("", description="one line for the list of recipes")
    base: BaseSection
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()

    @model_validator(mode="after")
    def _shares_leave_rows(self) -> "Recipe":
        if self.data.validation_share + self.data.test_share >= 0.9:
            raise ValueError("data: validation_share + test_share leave less than a tenth of the rows for training")
        return self


def recipe_names() -> list[str]:
    """The recipes that come with Gladstone."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def load_recipe(recipe: str | None, overrides: list[str], data: tuple[str, str] | None = None) -> Recipe:
    """A recipe by name or file, with `--data PATH --format NAME` and `--set a.b=c` applied.

    Raises ConfigError that lists every problem.
    """
    path = _find(recipe or DEFAULT_RECIPE)
    values: dict[str, Any] = read_yaml(path)
    if data is not None:
        section = values.setdefault("data", {})
        if isinstance(section, dict):
            section["sources"] = [{"path": data[0], "format": data[1]}]
    return build_config(Recipe, apply_overrides(values, overrides), f"recipe {path.name}")


def _find(recipe: str) -> Path:
    if recipe in recipe_names():
        return _recipe_folder() / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    raise ConfigError(f"no recipe {recipe!r}: neither a file nor one of {', '.join(recipe_names())}.")


def _recipe_folder() -> Path:
    return Path(str(resources.files("finetune"))) / "recipes"
