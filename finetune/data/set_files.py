"""Validation and test sets from files of their own, not drawn from the sources."""

from collections.abc import Iterable

from finetune.config.data import DataSection, Source
from finetune.data.duplicates.duplicates import key_hash
from finetune.data.sources import source_file, source_layout
from gladstone.artifacts import sha256_path
from gladstone.chat.messages import Conversation
from gladstone.errors import ConfigError, DataError, GladstoneError
from gladstone.formats import Layout

CHOICES = "a file, a share below 1, a number of rows, or 0 for none"


def set_file_layouts(section: DataSection) -> dict[str, Layout]:
    """Return the layout of each set's own file.

    Raises ConfigError, naming the option, for a file that is missing or unreadable, or that is used twice.
    """
    layouts = {name: _layout(name, source) for name, source in section.own_files.items()}
    for name, source in section.own_files.items():
        if any(_is_same_file(source, other) for other in section.sources):
            raise ConfigError(
                f"data.{name}: {source.path} is also a source, or a copy of one: its rows would be both trained on and "
                f"measured. Name other rows, or set {name}=0.1 to draw them from the source."
            )
    own = section.own_files
    if len(own) > 1 and _is_same_file(own["validation"], own["test"]):
        raise ConfigError(
            f"data.validation and data.test: {own['test'].path} is both, so that the test would not be "
            "independent of the validation. Name two files, or set one of them to 0."
        )
    return layouts


def _layout(name: str, source: Source) -> Layout:
    try:
        if not source_file(source).exists():
            raise DataError(f"{source.path}: no such data file. Expected {CHOICES}.")
        return source_layout(source)
    except GladstoneError as error:
        raise ConfigError(f"data.{name}: {error}") from None


def _is_same_file(one: Source, other: Source) -> bool:
    """True if two sources are one file, or copies of each other."""
    first, second = source_file(one), source_file(other)
    if first.samefile(second):
        return True
    alike = first.is_file() and second.is_file() and first.stat().st_size == second.stat().st_size
    return alike and sha256_path(first) == sha256_path(second)


def count_copies(rows: Iterable[Conversation]) -> int:
    """Count the rows that are exact copies of an earlier row."""
    seen: set[int] = set()
    count = 0
    for number, row in enumerate(rows, 1):
        seen.add(key_hash(repr(row.messages)))
        count = number - len(seen)
    return count
