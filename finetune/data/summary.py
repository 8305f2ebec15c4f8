"""What became of the rows: counted while they are prepared, told in lines, kept in data.json."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gladstone.commands.shell import command_line

DROPPED, CHANGED, PERSONAL, SUMMARY = "dropped.jsonl", "changed.jsonl", "personal.jsonl", "data.json"
CONFLICTS = "conflicts.jsonl"
FIRST = 3  # places that are named
SHOWN_BOILERPLATE, SHOWN_CHARS = 5, 90

_CHANGED = {
    "html": "HTML tags gone, entities turned into characters",
    "unicode": "characters composed (NFC), invisible ones gone",
    "lines": "line ends, space at line ends, blank lines around a text",
    "whitespace": "runs of spaces and blank lines, indentation gone",
    "boilerplate": "sentences gone that open or end many answers",
    "privacy": "personal data masked",
}
# what is only told of → in words, the option that acts on it, and how
_NOTED = {
    "html": ("HTML tags or entities", "html=remove", "removes them"),
    "whitespace": ("runs of spaces or blank lines, or indentation", "whitespace=remove", "removes them"),
    "boilerplate": ("sentences that open or end many answers", "boilerplate=remove", "removes them"),
    "too short": ("fewer than 10 characters in all", "min_chars=10", "leaves such rows out"),
    "echo": ("the answer has the words of the question", "echoes=drop", "leaves such rows out"),
    "cut": ("the answer stops in the middle of a sentence", "cut_answers=drop sure", "leaves such rows out"),
}
Line = tuple[str, int | None, str]


@dataclass
class Summary:
    """What was read, changed, left as it is, left out and why, and how many rows each set has."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the files, fields not used, values read as text
    read: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    noted: dict[str, dict[str, Any]] = field(default_factory=dict)  # what is only told of: rows, first, option
    boilerplate_sentences: int = 0
    boilerplate: list[dict[str, Any]] = field(default_factory=list)  # text, answers, opens, ends, first
    personal: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    options: dict[str, str] = field(default_factory=dict)  # of a reason, what left its rows out
    beyond: dict[str, int] = field(default_factory=dict)  # of a reason, the length farthest beyond its limit
    kept_duplicates: int = 0
    conflicts: int = 0
    conflict_examples: list[str] = field(default_factory=list)
    groups: int = 0
    largest_group: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    repeated: int = 0

    @property
    def left_out(self) -> int:
        """How many rows are in no set."""
        return sum(self.dropped.values())

    def note(self, name: str, source: str) -> None:
        """Count a row in which something was found and left as it is."""
        noted = self.noted.setdefault(name, {"rows": 0, "first": [], "found": _NOTED[name][0], "option": option(name)})
        noted["rows"] += 1
        if len(noted["first"]) < FIRST:
            noted["first"].append(source)

    def why(self, reason: str) -> str:
        """The option that leaves rows out for a reason, and the length farthest beyond it, in brackets."""
        size = self.beyond.get(reason)
        extreme = "longest" if reason == "too long" else "shortest"
        parts = [self.options.get(reason, ""), "" if size is None else f"the {extreme} {size:,}"]
        told = ", ".join(filter(None, parts))
        return f" ({told})" if told else ""

    def reasons(self) -> str:
        """Why rows are left out, with counts, in one line."""
        told = [f"{reason} {count:,}{self.why(reason)}" for reason, count in self.dropped.items() if count]
        return ", ".join(told) or "none"


def describe(summary: Summary, folder: Path) -> str:
    """What became of the rows, in lines for the terminal."""
    read = ", ".join(f"{each['path']} ({each['format']}{_used(each)})" for each in summary.sources)
    lines: list[Line] = [("read", summary.read, read), *cleaning_lines(summary, folder)]
    lines += conflict_lines(summary, folder)
    lines.append(("written", sum(summary.sets.values()), _counts(summary.sets)))
    if summary.repeated:
        lines.append(("repeated", summary.repeated, "training rows, by their sources' weight or share"))
    lines += [("note", None, note) for note in summary.notes]
    return in_columns(lines)


def _used(source: Mapping[str, Any]) -> str:
    return f", the {source['set']} set" if "set" in source else ""


def in_columns(lines: Sequence[Line]) -> str:
    """A line each: name, count, words."""
    return "\n".join(f"{name:10} {'' if count is None else f'{count:,}':>9}  {told}" for name, count, told in lines)


def cleaning_lines(summary: Summary, folder: Path) -> Iterator[Line]:
    """A line for every step that changed or left out a row, or would with an option; `folder` has the details."""
    for name, count in summary.changed.items():
        if count:
            yield "changed", count, f"{name}: {_CHANGED[name]}  → {folder / CHANGED}"
    for name, noted in summary.noted.items():
        yield "kept as is", noted["rows"], how_to_act(name, f" ({_places(noted)})")
    for sentence in summary.boilerplate[:SHOWN_BOILERPLATE]:
        yield "", None, _sentence(sentence)
    if len(summary.boilerplate) > SHOWN_BOILERPLATE:
        yield "", None, f"and {len(summary.boilerplate) - SHOWN_BOILERPLATE:,} more sentences  → {folder / SUMMARY}"
    if summary.personal:
        masked = "" if summary.changed["privacy"] or summary.dropped["personal data"] else (
            "; --set data.cleaning.privacy=mask puts a mark in its place, =drop leaves such rows out"
        )  # fmt: skip
        yield "personal", summary.personal.total(), f"{_counts(summary.personal)}{masked}  → {folder / PERSONAL}"
    for reason, count in summary.dropped.items():
        if count:
            yield "left out", count, f"{reason}{summary.why(reason)}  → {folder / DROPPED}"
    if summary.kept_duplicates:
        yield "kept", summary.kept_duplicates, "duplicates, each in the set of what it repeats"


def conflict_lines(summary: Summary, folder: Path) -> Iterator[Line]:
    """What contradicts what, and which rows stay in one set."""
    if summary.conflicts:
        told = "rows have the input of another row and another answer; they are kept"
        yield "conflicts", summary.conflicts, f"{told}  → {folder / CONFLICTS}"
        for example in summary.conflict_examples:
            yield "", None, example
    if summary.groups:
        told = f"groups of rows share an input, an answer or a context (the largest has {summary.largest_group:,})"
        yield "together", summary.groups, f"{told}; each is in one set"


def option(name: str) -> str:
    """What acts on something that is only told of, as --set takes it."""
    return f"data.cleaning.{_NOTED[name][1]}"


def how_to_act(name: str, places: str = "") -> str:
    """What was found, and what acts on it."""
    found, _, effect = _NOTED[name]
    return f"{name}: {found}{places}; {command_line('--set', option(name))} {effect}"


def _sentence(sentence: Mapping[str, Any]) -> str:
    text = sentence["text"] if len(sentence["text"]) <= SHOWN_CHARS else f"{sentence['text'][: SHOWN_CHARS - 1]}…"
    ends = [f"{verb} {sentence[verb]:,}" for verb in ("opens", "ends") if sentence[verb]]
    return f"{text!r} {' and '.join(ends)} ({_places({'rows': sentence['answers'], **sentence})})"


def _places(noted: Mapping[str, Any]) -> str:
    """The first places, the file named once: rows.jsonl:1, 2, 3, …"""
    first: list[str] = noted["first"]
    told, file = [], None
    for place in first:
        path, _, line = place.rpartition(":")
        told.append(line if path == file else f"{Path(path).name}:{line}")
        file = path
    return ", ".join([*told, *(["…"] if noted["rows"] > len(first) else [])])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"
