"""The data section of a recipe: sources, cleaning, duplicates and held-out sets."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune.config.row_limits import Train
from gladstone.config import UNION_TAG, Config
from gladstone.formats import COLUMNS, FORMAT_NAMES
from gladstone.rows import ENDINGS, check_encoding

HELD = ("validation", "test")  # the sets that are not trained on
Encoding = Annotated[str, AfterValidator(check_encoding)]


class Source(Config):
    """A data file."""

    path: str = Field(
        description=f"{ENDINGS}; 'hub:OWNER/NAME' for a Hub dataset; 'sample:NAME' for rows that come with Gladstone"
    )
    split: str = Field("train", description="split of a dataset of the Hub")
    config: str | None = Field(None, description="configuration of a dataset of the Hub")
    format: str = Field("auto", description=f"row format: {', '.join(FORMAT_NAMES)}")
    columns: dict[str, str] | None = Field(
        None, description=f"columns of a file with its own layout, by their role: {', '.join(COLUMNS)}"
    )
    first_rows: PositiveInt | None = Field(None, description="read only the first N rows of the file")
    encoding: Encoding | None = Field(
        None, description="text encoding of the file, such as cp1252; null: UTF-8, or detected from its bytes"
    )
    sheet: str | None = Field(None, description="sheet of an Excel workbook; null: the first with a header")
    license: str | None = Field(None, description="license of the data, such as cc-by-4.0, for the model card")
    weight: PositiveFloat = Field(
        1.0,
        description="how often an epoch uses the source's training rows: 2 repeats each row, 0.5 draws half of them",
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="share of all training rows that come from this source, in place of weight"
    )

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name not in FORMAT_NAMES:
            raise ValueError(f"unknown data format {name!r}; known: {', '.join(FORMAT_NAMES)}")
        return name

    @model_validator(mode="after")
    def _weight_or_share(self) -> "Source":
        if self.share is not None and self.weight != 1:
            raise ValueError(f"{self.path}: give weight or share, not both")
        return self


def _kind_of_set(value: Any) -> str:
    return f"{UNION_TAG}file" if isinstance(value, str | dict | Source) else f"{UNION_TAG}size"


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


# the rows to draw for a set, or the file of the set
Held = Annotated[
    Annotated[float, Field(ge=0), Tag(f"{UNION_TAG}size")]
    | Annotated[Source, BeforeValidator(_as_source), Tag(f"{UNION_TAG}file")],
    Discriminator(_kind_of_set),
]


class CleaningSection(Config):
    """Which changes are made to every text, and which rows are dropped. Each step reports its count and its option.

    A step that may misjudge a row is on `report` by default. true and false mean the last two values of a step.
    """

    unicode: bool = Field(
        True, description="normalize Unicode (NFC) and remove invisible characters without meaning, outside code"
    )
    lines: bool = Field(
        True, description="normalize line ends, remove trailing spaces and surrounding blank lines, outside code"
    )
    html: Literal["report", "remove", "keep"] = Field("report", description="HTML tags and entities, outside code")
    whitespace: Literal["report", "remove", "keep"] = Field(
        "report", description="repeated spaces, indentation and repeated blank lines, outside fenced code"
    )
    min_chars: int | None = Field(
        None,
        ge=0,
        description="drop rows with fewer characters in all, without reasoning, where a Chinese, Japanese or Korean "
        "character counts twice; null: report rows under 10",
    )
    max_chars: PositiveInt | None = Field(
        None, description="drop rows with a longer turn, counted alike, except plain text; null: no limit"
    )
    echoes: Literal["report", "drop", "keep"] = Field(
        "report", description="rows whose answer repeats the words of the question"
    )
    cut_answers: Literal["report", "drop sure", "drop likely", "keep"] = Field(
        "report",
        description="answers cut off inside a sentence: sure, if the last word or sign cannot end one; likely, also if "
        "only the last full stop is missing",
    )
    boilerplate: Literal["report", "remove", "keep"] = Field(
        "report", description="sentences that begin or end many answers"
    )
    privacy: Literal["report", "mask", "drop", "off"] = Field(
        "report",
        description="e-mail addresses, telephone numbers, dates of birth and record numbers: report them, mask them, "
        "drop the row, or do not search",
    )

    @field_validator("html", "whitespace", "echoes", "boilerplate", mode="before")
    @classmethod
    def _in_words(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool):
            return ("drop" if info.field_name == "echoes" else "remove") if value else "keep"
        return value


class DuplicateSection(Config):
    """Duplicate rows: equal input and answer, apart from case, punctuation, spacing and misprints."""

    similarity: float | None = Field(
        0.8,
        ge=0.5,
        le=1,
        description="Jaccard similarity of character 5-grams, without text common to many rows, from which two rows "
        "are compared word by word; null: exact duplicates only",
    )
    keep: bool = Field(False, description="keep all duplicates, in the same set, instead of the first only")
    together: bool = Field(
        True,
        description="put rows that share an input, an answer or a context into the same set; false: draw each row on "
        "its own, which can flatter held-out results",
    )


class ReasoningLimit(Config):
    """A limit on reasoning."""

    max_tokens: PositiveInt = Field(
        description="maximum tokens of reasoning; longer reasoning is cut after its last whole sentence"
    )


class DataSection(Config):
    """The rows, and their division into training, validation and test sets."""

    encoding: Encoding | None = Field(None, description="text encoding of files without an encoding of their own")
    sources: tuple[Source, ...] = Field(min_length=1, description="data files, read in this order")
    skip_bad: bool = Field(
        False,
        description="drop rows that cannot be read, or that the base's vocabulary or chat template refuses; "
        "dropped.jsonl has the reason for each",
    )
    cleaning: CleaningSection = CleaningSection()
    duplicates: DuplicateSection = DuplicateSection()
    train: Train = Field(
        "all",
        description="which of the assistant's turns are scored: all except those marked `weight: 0` or `train: false`, "
        "the last one, or only those marked `weight: 1` or `train: true`; rows without a scored turn are dropped",
    )
    reasoning: Literal["keep", "drop"] | ReasoningLimit = Field(
        "keep", description="train on the reasoning of rows, drop it, or limit it with {max_tokens: N}"
    )
    held_out: tuple[Source, ...] = Field(
        (), description="benchmark files; training rows that also occur there are dropped"
    )
    validation: Held = Field(
        0.1,
        description="rows for validation: a share below 1, a number, 0 for none, or a file (a path, or the fields of a "
        "source)",
    )
    test: Held = Field(
        0.1,
        description="rows kept for the test, never trained on: a share, a number, 0 for none, or a file",
    )
    division: Literal["seed", "hash"] = Field(
        "seed",
        description="draw the sets with the seed, or by the hash of each question, which is stable when rows are added",
    )
    max_rows: PositiveInt | None = Field(None, description="maximum number of rows, drawn with the seed")
    seed: int = Field(42, description="seed of the division and of the draw of rows")

    @property
    def reasoning_tokens(self) -> int | None:
        """Maximum tokens of reasoning: None without a limit, 0 if reasoning is dropped."""
        if isinstance(self.reasoning, ReasoningLimit):
            return self.reasoning.max_tokens
        return 0 if self.reasoning == "drop" else None

    def drawn(self, name: str) -> float:
        """How many of the sources' rows are drawn for a set: a share below 1 or a number; 0 for none or a file."""
        size = getattr(self, name)
        return 0.0 if isinstance(size, Source) else float(size)

    @property
    def files(self) -> tuple[Source, ...]:
        """Every file that is read: sources, files of held-out sets, benchmarks."""
        return (*self.sources, *self.own_files.values(), *self.held_out)

    @property
    def own_files(self) -> dict[str, Source]:
        """The held-out sets that are files."""
        held = {name: getattr(self, name) for name in HELD}
        return {name: source for name, source in held.items() if isinstance(source, Source)}

    def has(self, name: str) -> bool:
        """True if the set is not empty."""
        return name in self.own_files or self.drawn(name) > 0

    @field_validator("sources", "held_out", *HELD)
    @classmethod
    def _encoding_of_sources(cls, value: Any, info: ValidationInfo) -> Any:
        given = {"encoding": info.data.get("encoding")}
        if isinstance(value, tuple):
            return tuple(source if source.encoding else source.model_copy(update=given) for source in value)
        return value.model_copy(update=given) if isinstance(value, Source) and not value.encoding else value

    @model_validator(mode="after")
    def _sizes_leave_rows(self) -> "DataSection":
        sizes = [self.drawn(name) for name in HELD]
        if sum(size for size in sizes if size < 1) >= 0.9:
            raise ValueError("validation and test leave less than a tenth of the rows for training")
        if any(size >= 1 and size != int(size) for size in sizes):
            raise ValueError("validation and test are shares below 1 or whole numbers of rows")
        if self.division == "hash" and any(size >= 1 for size in sizes):
            raise ValueError("division by hash takes shares for validation and test, not numbers of rows")
        for name, own in self.own_files.items():
            if own.share is not None or own.weight != 1:
                raise ValueError(f"{name}: weight and share are of training rows; every row of its file is in the set")
        if sum(source.share or 0 for source in self.sources) >= 1 or all(source.share for source in self.sources):
            raise ValueError("sources: the shares must leave rows to a source without one")
        return self
