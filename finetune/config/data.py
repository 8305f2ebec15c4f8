"""What a recipe says about its data. A field's help text is its `description`; it is written here and nowhere else."""

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
from gladstone.config import TAG, Config
from gladstone.formats import COLUMNS, FORMAT_NAMES
from gladstone.rows import ENDINGS, check_encoding

HELD = ("validation", "test")  # the sets that are not trained on
Encoding = Annotated[str, AfterValidator(check_encoding)]


class Source(Config):
    """One data file."""

    path: str = Field(
        description=f"{ENDINGS}; 'hub:OWNER/NAME' for a data set of the Hub; 'sample:NAME' for the rows that come along"
    )
    split: str = Field("train", description="which split of a data set of the Hub")
    config: str | None = Field(None, description="which configuration of a data set of the Hub")
    format: str = Field("auto", description=f"row format: {', '.join(FORMAT_NAMES)}")
    columns: dict[str, str] | None = Field(
        None, description=f"for a layout of its own: which column is which of {', '.join(COLUMNS)}"
    )
    first_rows: PositiveInt | None = Field(None, description="read only this many rows from the start of the file")
    encoding: Encoding | None = Field(
        None, description="text encoding of the file, as cp1252; null: UTF-8, or what its bytes show it to be"
    )
    sheet: str | None = Field(None, description="which sheet of an Excel workbook; null: the first with a header")
    license: str | None = Field(None, description="under which it may be used, as cc-by-4.0; for the model card")
    weight: PositiveFloat = Field(
        1.0, description="how often its training rows are seen in an epoch: 2 repeats each, 0.5 draws half of them"
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="in place of weight: the share of all training rows that come from it"
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
    return f"{TAG}file" if isinstance(value, str | dict | Source) else f"{TAG}size"


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


# how many rows are drawn for a set, or the file that it is
Held = Annotated[
    Annotated[float, Field(ge=0), Tag(f"{TAG}size")]
    | Annotated[Source, BeforeValidator(_as_source), Tag(f"{TAG}file")],
    Discriminator(_kind_of_set),
]


class CleaningSection(Config):
    """What is done to every text, and which rows are left out. Each step is counted, and told of with its option.

    Where a step may be wrong about a row the default is `report`. true and false stand for its last two values.
    """

    unicode: bool = Field(
        True, description="compose characters (NFC), drop invisible ones that carry no meaning; code stays"
    )
    lines: bool = Field(
        True, description="one kind of line end, no space at line ends, no blank lines around a text; code stays"
    )
    html: Literal["report", "remove", "keep"] = Field(
        "report", description="HTML tags, and entities in place of characters, outside code"
    )
    whitespace: Literal["report", "remove", "keep"] = Field(
        "report", description="runs of spaces, indentation, more than one blank line, outside fenced code"
    )
    min_chars: int | None = Field(
        None,
        ge=0,
        description="leave out rows with fewer characters in all, reasoning not counted, those of Chinese, Japanese "
        "and Korean twice; null: tell of those under 10",
    )
    max_chars: PositiveInt | None = Field(
        None, description="leave out rows with a longer turn, counted alike, plain text aside; null: any length"
    )
    echoes: Literal["report", "drop", "keep"] = Field(
        "report", description="rows whose answer has the words of the question"
    )
    cut_answers: Literal["report", "drop sure", "drop likely", "keep"] = Field(
        "report",
        description="answers that stop in the middle of a sentence, at a word or sign that ends none; likely: also "
        "those whose last sentence only has no full stop",
    )
    boilerplate: Literal["report", "remove", "keep"] = Field(
        "report", description="sentences that open or end many answers"
    )
    privacy: Literal["report", "mask", "drop", "off"] = Field(
        "report",
        description="e-mail addresses, telephone numbers, dates of birth, record numbers: tell of them, put a mark in "
        "their place, leave the row out, or do not look",
    )

    @field_validator("html", "whitespace", "echoes", "boilerplate", mode="before")
    @classmethod
    def _in_words(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool):
            return ("drop" if info.field_name == "echoes" else "remove") if value else "keep"
        return value


class DuplicateSection(Config):
    """Rows that say the same: the same input and answer up to case, punctuation, spacing and slips."""

    similarity: float | None = Field(
        0.8,
        ge=0.5,
        le=1,
        description="rows of this Jaccard similarity of 5-grams, text common to many rows aside, are compared word by "
        "word: those that say the same are duplicates; null: exact ones only",
    )
    keep: bool = Field(False, description="keep duplicates, in the same set, in place of the first only")
    together: bool = Field(
        True,
        description="rows that share an input, an answer or a context go to the same set; false: each row is drawn by "
        "itself, and held-out figures may be too good",
    )


class ReasoningLimit(Config):
    """A budget for reasoning."""

    max_tokens: PositiveInt = Field(description="longer reasoning is cut after its last whole sentence")


class DataSection(Config):
    """The rows, and how they are divided."""

    encoding: Encoding | None = Field(None, description="text encoding of the files that name none of their own")
    sources: tuple[Source, ...] = Field(min_length=1, description="data files, read in this order")
    skip_bad: bool = Field(
        False,
        description="leave out rows that cannot be read, or that the base's vocabulary or chat template refuses; "
        "dropped.jsonl has the reason of each",
    )
    cleaning: CleaningSection = CleaningSection()
    duplicates: DuplicateSection = DuplicateSection()
    train: Train = Field(
        "all",
        description="which of the assistant's turns are scored: all but those of which the row says no (`weight: 0`, "
        "`train: false`), the last one, or only those of which the row says yes; rows with none are left out",
    )
    reasoning: Literal["keep", "drop"] | ReasoningLimit = Field(
        "keep", description="of rows that have reasoning: train on it, leave it out, or {max_tokens: N}"
    )
    held_out: tuple[Source, ...] = Field((), description="benchmark files: rows that are in them too are left out")
    validation: Held = Field(
        0.1,
        description="rows watched while training: their share, from 1 on their number, 0 for none, or a file of their "
        "own (a path, or what a source takes)",
    )
    test: Held = Field(
        0.1,
        description="rows kept for the benchmark, never seen: their share or number, 0 for none, or a file of their "
        "own",
    )
    division: Literal["seed", "hash"] = Field(
        "seed", description="draw the sets with the seed, or by each question's hash: stable when rows are added"
    )
    max_rows: PositiveInt | None = Field(None, description="use at most this many rows, drawn with the seed")
    seed: int = Field(42, description="decides the division and the draw of rows")

    @property
    def reasoning_tokens(self) -> int | None:
        """The limit for reasoning: None as it is, 0 none."""
        if isinstance(self.reasoning, ReasoningLimit):
            return self.reasoning.max_tokens
        return 0 if self.reasoning == "drop" else None

    def drawn(self, name: str) -> float:
        """How much of the sources' rows is drawn for a set: a share, from 1 on a number; 0 for none or a file."""
        size = getattr(self, name)
        return 0.0 if isinstance(size, Source) else float(size)

    @property
    def files(self) -> tuple[Source, ...]:
        """Every file that is read: sources, the sets' own, benchmarks."""
        return (*self.sources, *self.own_files.values(), *self.held_out)

    @property
    def own_files(self) -> dict[str, Source]:
        """The sets that are files of their own."""
        held = {name: getattr(self, name) for name in HELD}
        return {name: each for name, each in held.items() if isinstance(each, Source)}

    def has(self, name: str) -> bool:
        """Whether there is such a set at all."""
        return name in self.own_files or self.drawn(name) > 0

    @field_validator("sources", "held_out", *HELD)
    @classmethod
    def _encoding_of_sources(cls, found: Any, info: ValidationInfo) -> Any:
        given = {"encoding": info.data.get("encoding")}
        if isinstance(found, tuple):
            return tuple(each if each.encoding else each.model_copy(update=given) for each in found)
        return found.model_copy(update=given) if isinstance(found, Source) and not found.encoding else found

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
