"""The types of a benchmark: items, scores, results with intervals, and the report that holds all of it.

Per-item values are kept beside every mean, so that two reports on the same rows can be compared pair by pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gladstone.chat.messages import Message
from gladstone.strict_json import json_text

BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
TOO_FEW = "too few answers to judge"
HIGHER, LOWER = "higher", "lower"
NOT_COMPARABLE = "not comparable"
CUT = ("length", "context")  # stop reasons of an answer that did not end


@dataclass(frozen=True)
class Item:
    """One question with its reference answer, or a plain text without a question; `source` is `file:line`."""

    source: str
    prompt: tuple[Message, ...]
    reference: Message
    tools: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation."""
        return (*self.prompt, self.reference)

    @property
    def reference_text(self) -> str:
        """The text that an answer is compared with; tool calls are JSON."""
        calls = (
            f'{{"name": {json_text(call.name, ensure_ascii=True)}, "arguments": {call.arguments}}}'
            for call in self.reference.tool_calls
        )
        return "\n".join(filter(None, (self.reference.content, *calls)))

    @property
    def question(self) -> str:
        """The turn to answer, or the text itself if it asks nothing."""
        return self.prompt[-1].content if self.prompt else self.reference.content

    @property
    def is_text(self) -> bool:
        """True for a text that asks nothing: its loss is measured, but no answer is generated."""
        return not self.prompt


@dataclass(frozen=True)
class ModelFile:
    """A model under test: its file, its short name in the report, and facts from its header."""

    path: Path
    label: str
    sha256: str
    size_bytes: int
    quantisation: str
    tensor_types: dict[str, int]
    architecture: str
    parameters: int
    template_sha256: str | None


@dataclass(frozen=True)
class Answer:
    """A model's answer to the prompt of one item; `stop_reason` comes from the engine."""

    text: str
    reasoning: str | None
    stop_reason: str
    prompt_tokens: int
    generated_tokens: int

    @property
    def is_reasoning_only(self) -> bool:
        """True if the reasoning used up all tokens, so that there is no answer."""
        return not self.text and bool(self.reasoning) and self.stop_reason in CUT

    @property
    def shown(self) -> str:
        """The answer, or the reason in brackets if there is none."""
        return self.text or ("(no answer: the reasoning used up its tokens)" if self.is_reasoning_only else "(empty)")


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood of one item's reference answer, summed over its tokens."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class SpeedRun:
    """One measurement in a new process. Prefill and decode are timed without detokenising and sampling.

    `other_processors` is how many of the `processors` available to this process other processes used meanwhile.
    `placement` says in a line where weights and cache lay; `gpu_memory_bytes` is what all GPUs held of them.
    """

    load_s: float
    first_token_s: float
    prefill_tokens: int
    prefill_tokens_per_s: float
    decode_tokens: int
    decode_tokens_per_s: float
    peak_memory_bytes: int
    other_processors: float = 0.0
    processors: int = 0
    placement: str = ""
    gpu_layers: int = 0
    all_layers: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Measured:
    """All measurements of one model: a loss for each item, answers to the first items, and speed."""

    losses: tuple[Loss, ...]
    answers: tuple[Answer, ...]
    quality_peak_memory_bytes: int
    speed: tuple[SpeedRun, ...] = ()


@dataclass(frozen=True)
class Score:
    """The value of a metric for one item, in [0, 1] for built-in metrics; None if the metric cannot score the item."""

    source: str
    value: float | None


@dataclass(frozen=True)
class Result:
    """A mean with its 95 % confidence interval over `n` items."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A model's result minus the first model's over the same items, and the verdict in words."""

    result: Result
    verdict: str


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of a timing over several rounds."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ModelReport:
    """One model of the report. `differences` and `speed_ratios` compare it with the first model; the first has none.

    `unseen` maps each metric that has no result, and so no difference either, to the reason.
    """

    model: ModelFile
    results: dict[str, Result]
    differences: dict[str, Difference]
    scores: dict[str, tuple[Score, ...]]
    speed: dict[str, Spread]
    speed_ratios: dict[str, Spread]
    peak_memory_bytes: int | None
    truncated_answers: int
    measured: Measured
    unseen: dict[str, str] = field(default_factory=dict)

    @property
    def reasoning_only_answers(self) -> int:
        """Number of answers that ended while the model was still reasoning."""
        return sum(answer.is_reasoning_only for answer in self.measured.answers)


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown: its title, and whether higher is better (None if unknown)."""

    name: str
    title: str
    higher_is_better: bool | None


@dataclass(frozen=True)
class LeftOut:
    """A number of rows that no model is measured on, the reason, and the problem of the first of them."""

    reason: str
    rows: int
    first: str


@dataclass(frozen=True)
class Report:
    """A whole benchmark: results, sentences, per-item values, and their provenance."""

    headline: tuple[str, ...]
    warnings: tuple[str, ...]
    metrics: tuple[MetricInfo, ...]
    models: tuple[ModelReport, ...]
    items: tuple[Item, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def answered(self) -> int:
        """Number of items, from the first on, that have answers."""
        return len(self.models[0].measured.answers)

    @property
    def row_notes(self) -> tuple[str, ...]:
        """Notes on the rows, one line each, those that were left out first."""
        lines = [f"left out: {_rows(each.rows)}, {each.reason} (first: {each.first})" for each in self.left_out]
        return (*lines, *self.notes)

    @property
    def scored_description(self) -> str:
        """What the perplexity is measured on."""
        return scored_description(self.items)

    @property
    def references(self) -> tuple[str, ...]:
        """The texts that the answers are compared with."""
        return tuple(item.reference_text.strip() for item in self.items[: self.answered])


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def scored_description(items: Sequence[Item]) -> str:
    """What the perplexity of these items is measured on."""
    texts = sum(item.is_text for item in items)
    counts = {"the reference answers of {} rows": len(items) - texts, "{} texts": texts}
    return " and ".join(words.format(f"{count:,}") for words, count in counts.items() if count)
