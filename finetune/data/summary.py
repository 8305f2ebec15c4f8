"""Counts what happens to the rows while they are prepared; rendered as lines, and stored in data.json."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.cleaning.findings import LISTED_SOURCES, describe_finding, finding_text, option

DROPPED, CHANGED, PERSONAL, SUMMARY = "dropped.jsonl", "changed.jsonl", "personal.jsonl", "data.json"
CONFLICTS = "conflicts.jsonl"
SHOWN_BOILERPLATE, SHOWN_CHARS = 5, 90

_CHANGED = {
    "html": "HTML tags removed, entities replaced by characters",
    "unicode": "characters composed (NFC), invisible characters removed",
    "lines": "line ends unified, trailing space and blank lines around a text removed",
    "whitespace": "runs of spaces, blank lines and indentation removed",
    "boilerplate": "sentences removed that begin or end many answers",
    "privacy": "personal data masked",
}
Line = tuple[str, int | None, str]


@dataclass
class Summary:
    """What was read, changed, reported, left out and why, and the number of rows in each set."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the files: unused fields, values read as text
    read: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    noted: dict[str, dict[str, Any]] = field(default_factory=dict)  # what is only reported: rows, first, option
    boilerplate_sentences: int = 0
    boilerplate: list[dict[str, Any]] = field(default_factory=list)  # text, answers, opens, ends, first
    personal: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    options: dict[str, str] = field(default_factory=dict)  # reason → the option that left its rows out
    beyond: dict[str, int] = field(default_factory=dict)  # reason → the length farthest beyond its limit
    kept_duplicates: int = 0
    conflicts: int = 0
    conflict_examples: list[str] = field(default_factory=list)
    groups: int = 0
    largest_group: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    repeated: int = 0

    @property
    def left_out(self) -> int:
        """The number of rows that are in no set."""
        return sum(self.dropped.values())

    def note(self, name: str, source: str) -> None:
        """Count a row with a finding that is reported but left unchanged."""
        unseen = {"rows": 0, "first": [], "found": finding_text(name), "option": option(name)}
        noted = self.noted.setdefault(name, unseen)
        noted["rows"] += 1
        if len(noted["first"]) < LISTED_SOURCES:
            noted["first"].append(source)

    def explain(self, reason: str) -> str:
        """Return, in brackets, the option that leaves rows out for a reason, and the most extreme length."""
        size = self.beyond.get(reason)
        extreme = "longest" if reason == "too long" else "shortest"
        parts = [self.options.get(reason, ""), "" if size is None else f"the {extreme} {size:,}"]
        details = ", ".join(filter(None, parts))
        return f" ({details})" if details else ""

    def reasons(self) -> str:
        """Return why rows are left out, with counts, in one line."""
        reasons = [f"{reason} {count:,}{self.explain(reason)}" for reason, count in self.dropped.items() if count]
        return ", ".join(reasons) or "none"


def describe(summary: Summary, folder: Path) -> str:
    """Return the summary as lines for the terminal."""
    read = ", ".join(f"{source['path']} ({source['format']}{_used(source)})" for source in summary.sources)
    lines: list[Line] = [("read", summary.read, read), *cleaning_lines(summary, folder)]
    lines += conflict_lines(summary, folder)
    lines.append(("written", sum(summary.sets.values()), _counts(summary.sets)))
    if summary.repeated:
        lines.append(("repeated", summary.repeated, "training rows, according to their sources' weight or share"))
    lines += [("note", None, note) for note in summary.notes]
    return format_columns(lines)


def _used(source: Mapping[str, Any]) -> str:
    return f", the {source['set']} set" if "set" in source else ""


def format_columns(lines: Sequence[Line]) -> str:
    """Format lines of name, count and text as columns."""
    return "\n".join(f"{name:10} {'' if count is None else f'{count:,}':>9}  {text}" for name, count, text in lines)


def cleaning_lines(summary: Summary, folder: Path) -> Iterator[Line]:
    """Yield a line for every step that changed or left out rows, or would with an option; `folder` has the details."""
    for name, count in summary.changed.items():
        if count:
            yield "changed", count, f"{name}: {_CHANGED[name]}  → {folder / CHANGED}"
    for name, noted in summary.noted.items():
        yield "kept as is", noted["rows"], describe_finding(name, f" ({_example_sources(noted)})")
    for sentence in summary.boilerplate[:SHOWN_BOILERPLATE]:
        yield "", None, _sentence(sentence)
    if len(summary.boilerplate) > SHOWN_BOILERPLATE:
        yield "", None, f"and {len(summary.boilerplate) - SHOWN_BOILERPLATE:,} more sentences  → {folder / SUMMARY}"
    if summary.personal:
        masked = "" if summary.changed["privacy"] or summary.dropped["personal data"] else (
            "; --set data.cleaning.privacy=mask replaces it by a placeholder, =drop leaves such rows out"
        )  # fmt: skip
        yield "personal", summary.personal.total(), f"{_counts(summary.personal)}{masked}  → {folder / PERSONAL}"
    for reason, count in summary.dropped.items():
        if count:
            yield "left out", count, f"{reason}{summary.explain(reason)}  → {folder / DROPPED}"
    if summary.kept_duplicates:
        yield "kept", summary.kept_duplicates, "duplicates, each in the set of the row that it repeats"


def conflict_lines(summary: Summary, folder: Path) -> Iterator[Line]:
    """Yield lines on rows that contradict each other, and on rows that stay in one set."""
    if summary.conflicts:
        text = "rows have the same input as another row but a different answer; they are kept"
        yield "conflicts", summary.conflicts, f"{text}  → {folder / CONFLICTS}"
        for example in summary.conflict_examples:
            yield "", None, example
    if summary.groups:
        text = f"groups of rows share an input, an answer or a context (the largest has {summary.largest_group:,})"
        yield "together", summary.groups, f"{text}; each stays in one set"


def _sentence(sentence: Mapping[str, Any]) -> str:
    text = sentence["text"] if len(sentence["text"]) <= SHOWN_CHARS else f"{sentence['text'][: SHOWN_CHARS - 1]}…"
    ends = [f"{verb} {sentence[verb]:,}" for verb in ("opens", "ends") if sentence[verb]]
    return f"{text!r} {' and '.join(ends)} ({_example_sources({'rows': sentence['answers'], **sentence})})"


def _example_sources(noted: Mapping[str, Any]) -> str:
    """Format the first sources, naming each file once: rows.jsonl:1, 2, 3, …"""
    first: list[str] = noted["first"]
    shown, file = [], None
    for source in first:
        path, _, line = source.rpartition(":")
        shown.append(line if path == file else f"{Path(path).name}:{line}")
        file = path
    return ", ".join([*shown, *(["…"] if noted["rows"] > len(first) else [])])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"
