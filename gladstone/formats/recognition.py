"""Recognises the layout of a file by the fields of its first rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gladstone.errors import DataError
from gladstone.formats import (
    alpaca,
    dolly,
    gemini,
    medquad,
    messages,
    pair,
    preference,
    prompt,
    pubmedqa,
    qa,
    reasoning,
    rendered,
    sharegpt,
    text,
)
from gladstone.rows import DEFAULT_OPTIONS, Problems, ReadOptions, Row, read_rows, readable_fields

IDENTIFYING_FIELDS: dict[str, tuple[str, ...]] = {
    "qa": qa.FIELDS,
    "alpaca": alpaca.FIELDS,
    "messages": messages.FIELDS,
    "sharegpt": sharegpt.FIELDS,
    "prompt": prompt.FIELDS,
    "dolly": dolly.FIELDS,
    "gemini": gemini.FIELDS,
    "reasoning": reasoning.FIELDS,
    "pubmedqa": pubmedqa.FIELDS,
    "medquad": medquad.FIELDS,
    "text": text.FIELDS,
}
SAMPLED_ROWS = 50
PREFERENCE, KTO, RATED, TOKENS = "preference", "kto", "rated", "tokens"
ANSWERS_TO_TEXT = ("label", "labels", "target", "summary", *pair.ANSWERS)


def recognise(path: Path, options: ReadOptions = DEFAULT_OPTIONS) -> tuple[str, str]:
    """Return the one layout whose fields most of the first rows have, and why.

    Raises DataError if none or several fit.
    """
    rows = islice(read_rows(path, Problems(), options), SAMPLED_ROWS)
    sample = [(set(row), _marks(row), _rendered(row)) for row, _ in rows]
    if not sample:
        raise DataError(f"{path}: no row can be read, so its format cannot be recognised.")
    names = [fields for fields, _, _ in sample]
    _check_marks(path, [marks for _, marks, _ in sample])
    refused = rendered.rendered_error([kind for _, _, kind in sample], path)
    if refused is not None:
        raise refused
    counts = {name: sum(row.issuperset(fields) for row in names) for name, fields in IDENTIFYING_FIELDS.items()}
    fitting = [name for name, count in counts.items() if count * 2 >= len(sample)]
    # rows with more fields are not plain text: Alpaca's rows repeat the whole row, rendered, in `text`
    fitting = [name for name in fitting if name != "text"] or fitting
    if fitting == ["text"]:
        _check_plain_text(path, names)
    if len(fitting) == 1:
        return fitting[0], _why(counts[fitting[0]], len(sample), IDENTIFYING_FIELDS[fitting[0]])
    if fitting:
        raise DataError(f"{path}: fits the formats {' and '.join(fitting)}. Choose one with --format.")
    pairs = Counter(found for row in names if (found := pair.find_pair(row)))
    best, count = pairs.most_common(1)[0] if pairs else (("", ""), 0)
    if count * 2 >= len(sample):
        return "pair", _why(count, len(sample), best)
    raise DataError(
        f"{path}: fits no known format; its first rows all have {readable_fields(sorted(set.intersection(*names)))}. "
        "Name the fields under columns: in a recipe's source (--column of `finetune data check` and `bench run`), or "
        "give a --format."
    )


def _why(count: int, of_rows: int, fields: Sequence[str]) -> str:
    of_all = "" if count == of_rows else f"{count} of "
    return f"{of_all}the first {of_rows} rows have {', '.join(fields)}"


def _marks(row: Row) -> frozenset[str]:
    """Return the kinds of training data that a row's values indicate."""
    marks = set()
    if any(row.get(name) not in (None, "", []) for name in preference.REJECTED):
        marks.add(PREFERENCE)
    for name in preference.LABELS:
        if isinstance(row.get(name), bool):
            marks.add(KTO)
        elif _has(row, prompt.FIELDS) and preference.parse_flag(row.get(name)) is not None:
            marks.add(RATED)
    if isinstance(row.get("input_ids"), list):
        marks.add(TOKENS)
    return frozenset(marks)


def _rendered(row: Row) -> str | None:
    """Return the chat template that the row's text, question or answer is rendered in; None if there is none."""
    texts = (row.get(name) for name in ("text", *pair.QUESTIONS, *pair.ANSWERS))
    kinds = (rendered.detect_template(text) for text in texts if isinstance(text, str))
    return next((kind for kind in kinds if kind), None)


def _has(row: Mapping[str, Any], fields: Sequence[str]) -> bool:
    return all(field in row for field in fields)


def _check_marks(path: Path, marks: list[frozenset[str]]) -> None:
    """Raise DataError for data of an unsupported kind, with advice."""
    refused = {
        PREFERENCE: "preference rows (chosen and rejected answers, DPO): training on preferences is not supported. "
        "--format preference trains on the chosen answers and leaves the rejected ones out.",
        KTO: "rows with a label of true or false (KTO): such training is not supported, and a false one marks a bad "
        "answer. --format kto trains on the rows whose label is true and leaves the others out.",
        RATED: "prompt and completion with a label that may mark good completions (KTO). --format kto trains on rows "
        "whose label is true or 1 and leaves the others out; --format prompt uses all rows and ignores the label.",
        TOKENS: "rows of token ids (input_ids); expected rows of text, which the base model's own tokenizer reads.",
    }
    for mark, advice in refused.items():
        if sum(mark in row_marks for row_marks in marks) * 2 >= len(marks):
            raise DataError(f"{path}: {advice}")


def _check_plain_text(path: Path, names: list[set[str]]) -> None:
    """Raise DataError if `text` has an answer beside it, which reading the rows as plain text would lose."""
    for name in ANSWERS_TO_TEXT:
        if sum(name in row for row in names) * 2 >= len(names):
            raise DataError(
                f"{path}: its rows have text and {name}. If {name} is the answer to the text, set "
                f"columns: {{question: text, answer: {name}}} in a recipe's source (--column of `finetune data "
                "check` and `bench run`); --format text uses the text alone."
            )
