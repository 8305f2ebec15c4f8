"""Division into training, validation and test set, and how often each training row is repeated."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xxhash

from finetune.config.data import HELD, DataSection, Source
from finetune.data.duplicates.groups import Groups

SETS = ("train", *HELD)


@dataclass(frozen=True)
class Division:
    """The numbers of the rows in each set, in order."""

    train: list[int]
    validation: list[int]
    test: list[int]

    def sets(self) -> dict[str, list[int]]:
        """The sets by name."""
        return {name: getattr(self, name) for name in SETS}


def divide(rows: Sequence[int], groups: Groups, section: DataSection, question: Callable[[int], int]) -> Division:
    """Divide rows by number, keeping groups whole. `question` returns a row's hash, for division by hash.

    A set that the section draws no rows for is empty.
    """
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(groups.root(row), []).append(row)
    if section.division == "hash":
        return _by_hash(members, section, question)
    shuffled = list(members.values())
    random.Random(section.seed).shuffle(shuffled)  # noqa: S311 - a draw, not a secret
    test, rest = _take(shuffled, _rows_wanted(section.drawn("test"), len(rows)))
    validation, rest = _take(rest, _rows_wanted(section.drawn("validation"), len(rows)))
    return Division(*(sorted(row for group in part for row in group) for part in (rest, validation, test)))


def explain_empty(
    empty: Sequence[str], rows: int, largest: tuple[int, int, Sequence[str]], section: DataSection
) -> str:
    """Explain why sets are empty and what helps. `largest`: number of groups, size of the largest, two of its rows."""
    groups, size, shown = largest
    wanted = 1 + sum(section.drawn(name) > 0 for name in HELD)
    said = f"{rows:,} rows are too few to divide: the {' and the '.join(empty)} set would be empty."
    if size > 1 and groups < wanted + 1:
        said += f" They form {groups} groups that share an input, an answer or a context, and a group stays in one set;"
        said += f" the largest has {size:,} rows, among them\n" + "\n".join(f"  {example}" for example in shown)
        helps = ["data.duplicates.together=false divides the rows one by one"] if rows >= wanted else []
        return f"{said}\nWhat helps: {'; '.join([*helps, 'rows of other inputs'])}."
    if section.division == "hash" and rows >= wanted:
        return (
            f"{said} Division by hash draws the set of each question independently; data.division=seed fills all sets."
        )
    return f"{said} {'Three sets need at least three' if wanted == len(SETS) else 'Two sets need at least two'} rows."


def _rows_wanted(size: float, rows: int) -> int:
    if size == 0:
        return 0
    return int(size) if size >= 1 else max(1, round(size * rows))


def _take(groups: list[list[int]], wanted: int) -> tuple[list[list[int]], list[list[int]]]:
    """Split groups into those that fill `wanted` rows and the rest; a group that does not fit is passed over.

    If all groups are larger, the smallest one is taken.
    """
    if not wanted:
        return [], groups
    taken: list[list[int]] = []
    rest: list[list[int]] = []
    count = 0
    for group in groups:
        fits = count + len(group) <= wanted
        (taken if fits else rest).append(group)
        count += len(group) if fits else 0
    if not taken and rest:
        smallest = min(range(len(rest)), key=lambda index: len(rest[index]))
        taken.append(rest.pop(smallest))
    return taken, rest


def _by_hash(members: dict[int, list[int]], section: DataSection, question: Callable[[int], int]) -> Division:
    """Divide by hash. A group's set depends on its first question alone, so rows added later move no other group."""
    sets: dict[str, list[int]] = {name: [] for name in SETS}
    for root, group in members.items():
        drawn = xxhash.xxh3_64_intdigest(f"{section.seed} {question(root)}".encode()) / 2**64
        test, validation = section.drawn("test"), section.drawn("validation")
        sets["test" if drawn < test else "validation" if drawn < test + validation else "train"] += group
    return Division(*(sorted(sets[name]) for name in SETS))


def repeat_by_weight(
    rows: Sequence[int], origin: Callable[[int], int], sources: Sequence[Source], seed: int
) -> list[int]:
    """Repeat training rows by the weight or share of their source, in order.

    A weight of 2.5 includes every row twice, and half of the rows, drawn with the seed, a third time.
    """
    if all(source.weight == 1 and source.share is None for source in sources):
        return list(rows)
    of_source: list[list[int]] = [[] for _ in sources]
    for row in rows:
        of_source[origin(row)].append(row)
    weighed = sum(
        source.weight * len(own) for source, own in zip(sources, of_source, strict=True) if source.share is None
    )
    total = weighed / (1 - sum(source.share or 0 for source in sources))
    draw = random.Random(seed)  # noqa: S311 - a draw, not a secret
    mixed: list[int] = []
    for source, own in zip(sources, of_source, strict=True):
        wanted = round(source.weight * len(own) if source.share is None else source.share * total)
        if own:
            times, more = divmod(wanted, len(own))
            mixed += own * times + draw.sample(own, more)
    return sorted(mixed)
