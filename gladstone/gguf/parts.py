"""Models in several files: parts that llama.cpp loads as one model, and raw parts that must be joined first.

llama-gguf-split writes parts that are GGUF files themselves, NAME-00001-of-00003.gguf. `split` and tools like it cut a
file at any byte: NAME.gguf.part1of2, NAME.gguf-split-a, NAME.gguf.001.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from gladstone.commands.shell import command_line

SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
RAW_NAME = re.compile(
    r"(?P<whole>.+\.(?:gguf|ggml|safetensors|bin))[._-]?(?:(?P<said>part|split)[._-]?)?"
    r"(?P<number>\d{1,5}|a[a-z]|(?(said)[a-z]{1,2}|a))(?:[._-]?of[._-]?(?P<count>\d{1,5}))?",
    re.IGNORECASE,
)  # fmt: skip


def part_name(stem: str, number: int, count: int) -> str:
    """The file name of part `number` (from 1) of a split model, as llama.cpp expects it."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def why_not_first_part(path: Path, number: int, count: int) -> str | None:
    """Why `path`, by its header part `number` (from 0) of `count`, cannot be loaded; None if it can."""
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None or (int(named[2]), int(named[3])) != (number + 1, count):
        stem = named[1] if named else path.stem
        return (
            f"one of {count} parts, but its name does not end in -{number + 1:05}-of-{count:05}.gguf as llama.cpp "
            f"requires: rename it to {part_name(stem, number + 1, count)}, and the others likewise"
        )
    if number:
        first = path.with_name(part_name(named[1], 1, count))
        hint = "" if first.exists() else ", which is not in this folder"
        return f"part {number + 1} of {count}; give the first, {first.name}{hint}"
    missing = [name for name in _part_names(named[1], count) if not path.with_name(name).exists()]
    if missing:
        listing = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return f"the first of {count} parts; missing from its folder: {listing}. Put them there"
    return None


def _part_names(stem: str, count: int) -> list[str]:
    return [part_name(stem, number, count) for number in range(1, count + 1)]


def describe_raw_part(path: Path) -> str | None:
    """How to join a file that by its name is a raw part of another; None if it is not named like one."""
    named = RAW_NAME.fullmatch(path.name)
    if named is None:
        return None
    whole, count = path.with_name(named["whole"]), named["count"]
    parts = sorted(_siblings(path, named["whole"]), key=lambda part: _sort_key(part[0]))
    numbers = [number for number, _ in parts]
    lacking = _missing_parts(numbers, int(count) if count else None)
    of = f" of {count}" if count else ""
    description = f"part {named['number']}{of} of {whole.name}, which was cut into raw parts"
    if lacking:
        return f"{description}: {lacking} missing from its folder. Put all parts there and join them"
    return f"{description}. Join them: {_join_command([part for _, part in parts], whole)}"


def _siblings(path: Path, whole: str) -> list[tuple[str, Path]]:
    """The numbers and paths of all parts of the same file."""
    entries = [(path.name, path)]
    with suppress(OSError):  # a folder may permit access but not listing
        entries = [(entry.name, entry) for entry in path.parent.iterdir()]
    matches = ((RAW_NAME.fullmatch(name), entry) for name, entry in entries)
    return [(match["number"], entry) for match, entry in matches if match and match["whole"] == whole]


def _sort_key(number: str) -> tuple[int, str]:
    return (int(number), "") if number.isdigit() else (len(number), number)


def _missing_parts(numbers: list[str], count: int | None) -> str:
    """Which parts are missing, as far as the names show, as subject and verb; '' if none."""
    if not all(number.isdigit() for number in numbers):
        return "" if len(numbers) > 1 or count is not None else "the others are"
    present = {int(number) for number in numbers}
    first = 0 if 0 in present else 1
    last = count if count is not None else max(*present, first + 1)
    gone = [str(number) for number in range(first, last + 1) if number not in present]
    gone = gone if count is None or first else gone[:-1]
    if not gone:
        return ""
    return f"part {gone[0]} is" if len(gone) == 1 else f"parts {', '.join(gone)} are"


def _join_command(parts: list[Path], whole: Path) -> str:
    if os.name == "nt":
        return f"copy /b {'+'.join(command_line(part) for part in parts)} {command_line(whole)}"
    return f"{command_line('cat', *parts)} > {command_line(whole)}"
