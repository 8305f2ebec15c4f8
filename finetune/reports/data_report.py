"""`finetune data report`: a description of the rows as an HTML page and as JSON. Names py3langid.

Memory holds the length of every row, the word counts, and the rows shown.
"""

import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config.schema import Recipe
from finetune.data.division import SETS
from finetune.data.leaks.leaks import LeakIndex, least_score
from finetune.data.prepare import DROPPED, Summary, has_set, prepare, read_set
from finetune.reports.data_preview import Previewer
from finetune.tokens.examples import Example
from finetune.tokens.tokenize import scored_texts
from gladstone.artifacts import write_json, write_text
from gladstone.chat.messages import NO_MEDICAL_ADVICE, Conversation
from gladstone.commands.progress import Progress, step
from gladstone.errors import DataError
from gladstone.report.html import render_template
from gladstone.rows import read_rows

TOKEN_LIMITS = (128, 256, 512, 1024, 2048)
BINS, TOP_WORDS, SAMPLES, SHOWN_DUPLICATES, LANGUAGE_ROWS = 30, 40, 5, 12, 2000
MIN_LANGUAGE_CHARS = 40  # language detection is unreliable below this
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset((
    "the", "and", "for", "are", "was", "that", "with", "this", "from", "have", "has", "can", "not", "may", "which",
    "who", "how", "what", "why", "when", "where", "you", "your", "they", "their", "there", "these", "those", "than",
    "then", "its", "also", "been", "were", "will", "would", "should", "could", "more", "most", "other", "such", "into",
    "about", "between", "after", "before", "during", "does", "because", "but", "any", "all", "one", "two", "some",
    "often", "usually",
))  # fmt: skip


@dataclass(frozen=True)
class Histogram:
    """Counts of lengths between edges; the last bin includes all longer ones."""

    unit: str
    edges: list[int]
    counts: list[int]
    median: int
    p95: int
    longest: int


@dataclass
class Report:
    """The contents of the page."""

    name: str
    summary: Summary
    lengths: dict[str, Histogram] = field(default_factory=dict)
    scored_share: float = 0.0
    longer_than: dict[int, float] = field(default_factory=dict)
    words: list[tuple[str, int]] = field(default_factory=list)
    languages: list[tuple[str, float]] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)
    leaks: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    base: str = ""
    template_sha256: str = ""


def make_report(recipe: Recipe, out: Path, loss_rows: int, progress: Progress) -> Report:
    """Prepare the recipe's rows in `out` and describe them in report.html and report.json.

    The base model scores `loss_rows` rows. Raises the errors of `prepare`.
    """
    made = cache(partial(Previewer, recipe, progress))
    # without skip_bad the report itself lists such rows
    summary = prepare(recipe.data, out, progress, (lambda: made().labeller.check) if recipe.data.skip_bad else None)
    previewer = made()
    report = Report(recipe.name, summary, base=previewer.base.name, template_sha256=previewer.template.sha256)
    with step(progress, "Measuring the rows"):
        _Measures(previewer).fill(report, out)
        report.duplicates = _duplicates(out)
        if has_set(out, "test"):
            index = LeakIndex(read_set(out, "test"), least_score(recipe.data.duplicates.similarity))
            report.leaks = dict(Counter(leak.kind for _, leak in index.leaks(read_set(out, "train"))))
    if loss_rows:
        from finetune.reports.row_losses import row_losses

        with step(progress, "Scoring rows with the base model"):
            chosen = list(islice(read_set(out, "train"), loss_rows))
            report.losses = row_losses(previewer, chosen, progress.update)
    write_json(out / "report.json", as_json(report))
    write_text(out / "report.html", render(report))
    return report


class _Measures:
    """Collects the measures in one pass over all sets."""

    def __init__(self, previewer: Previewer) -> None:
        self._previewer = previewer
        self._lengths = {
            name: array("L") for name in ("question characters", "answer characters", "reasoning characters", "tokens")
        }
        self._scored = 0
        self._words: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()

    def fill(self, report: Report, folder: Path) -> None:
        """Fill the report from the sets."""
        draw = random.Random(0)  # noqa: S311 - a draw, not a secret
        for name in SETS:
            drawn: list[Conversation] = []
            for number, row in enumerate(read_set(folder, name), 1):
                self._add(row, report)
                if len(drawn) < SAMPLES:  # reservoir sampling: every row has the same probability
                    drawn.append(row)
                elif (place := draw.randrange(number)) < SAMPLES:
                    drawn[place] = row
            report.samples += [self._sample(row, name) for row in drawn[: SAMPLES if name == "train" else 1]]
        report.lengths = {name: histogram(values, name) for name, values in self._lengths.items() if values}
        tokens = np.array(self._lengths["tokens"], dtype=np.int64)
        if len(tokens):
            report.longer_than = {limit: float((tokens > limit).mean()) for limit in TOKEN_LIMITS}
            report.scored_share = self._scored / int(tokens.sum())
        report.words = self._words.most_common(TOP_WORDS)
        detected = self._languages.total()
        report.languages = [(language, count / detected) for language, count in self._languages.most_common(6)]

    def _add(self, row: Conversation, report: Report) -> None:
        answer = row.answer
        if not row.is_text:
            asked = next(message for message in reversed(row.messages) if message.role == "user")
            self._lengths["question characters"].append(len(asked.content))
        self._lengths["answer characters"].append(len(answer.content))
        if answer.reasoning:
            self._lengths["reasoning characters"].append(len(answer.reasoning))
        self._words.update(word for word in _WORD.findall(answer.content.casefold()) if word not in _COMMON)
        if self._languages.total() < LANGUAGE_ROWS and len(answer.content) >= MIN_LANGUAGE_CHARS:
            self._languages[language(answer.content)] += 1
        examples = self._examples(row)
        if isinstance(examples, str):
            report.untold += [examples] if len(report.untold) < SAMPLES else []
            return
        for example in examples:
            self._lengths["tokens"].append(len(example.input_ids))
            self._scored += example.target_tokens

    def _examples(self, row: Conversation) -> Sequence[Example] | str:
        try:
            return self._previewer.labeller.untruncated(row)
        except DataError as error:
            return str(error)

    def _sample(self, row: Conversation, name: str) -> dict[str, Any]:
        examples = self._examples(row)
        if isinstance(examples, str):
            return {"source": row.source, "set": name, "tokens": 0, "parts": [(examples, False)]}
        parts = [part for example in examples for part in scored_texts(example, self._previewer.tokenizer)]
        tokens = sum(len(example.input_ids) for example in examples)
        return {"source": row.source, "set": name, "tokens": tokens, "parts": parts}


def histogram(values: Sequence[int], unit: str) -> Histogram:
    """A histogram of thirty bins from 0 to the 99th percentile."""
    lengths = np.array(values, dtype=np.int64)
    end = max(BINS, int(np.percentile(lengths, 99)))
    edges = np.linspace(0, end, BINS + 1).astype(int)
    counts, _ = np.histogram(np.minimum(lengths, end), edges)
    median, p95 = (int(value) for value in np.percentile(lengths, [50, 95]))
    return Histogram(unit, edges.tolist(), counts.tolist(), median, p95, int(lengths.max()))


def language(text: str) -> str:
    """The detected language of a text as an ISO 639-1 code."""
    import py3langid  # type: ignore[import-untyped]

    code: str = py3langid.classify(text)[0]
    return code


def _duplicates(folder: Path) -> list[dict[str, str]]:
    """The first duplicates that were left out and the rows that they repeat, by file name and line."""
    kinds = ("exact copy", "near duplicate")
    try:
        rows: Iterator[Any] = (row for row, _ in read_rows(folder / DROPPED) if row["reason"] in kinds)
        return [
            {
                "source": row["source"].rpartition("/")[2],
                "reason": row["reason"],
                "detail": f"of {row['detail'].rpartition('/')[2]}",
            }
            for row in islice(rows, SHOWN_DUPLICATES)
        ]
    except DataError:  # the file is empty if nothing was left out
        return []


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return vars(report) | {
        "summary": vars(report.summary),
        "lengths": {name: vars(each) for name, each in report.lengths.items()},
        "samples": [sample | {"parts": [list(part) for part in sample["parts"]]} for sample in report.samples],
    }


def render(report: Report) -> str:
    """HTML with inline styles; every text is escaped, and a content security policy forbids every request."""
    values = {"report": report, "summary": report.summary, "advice": NO_MEDICAL_ADVICE}
    return render_template("finetune", "data_report.html", **values)
