"""Validation and test sets that are files of their own, not drawn from the sources."""

from collections.abc import Iterable

from finetune.config.data import DataSection, Source
from finetune.data.duplicates.duplicates import key_hash
from gladstone.artifacts import sha256_path
from gladstone.chat.messages import Conversation
from gladstone.errors import ConfigError, DataError, GladstoneError
from gladstone.formats import Layout

CHOICES = "a file, a share below 1, a number of rows, or 0 for none"


def own_layouts(section: DataSection) -> dict[str, Layout]:
    """How the rows of each set's own file are read.

    Raises ConfigError with the option's name for a file that is missing or cannot be read, or that is named twice.
    """
    layouts = {name: _layout(name, source) for name, source in section.own_files.items()}
    for name, source in section.own_files.items():
        if any(_same(source, each) for each in section.sources):
            raise ConfigError(
                f"data.{name}: {source.path} is one of the sources too, or a copy of one: its rows would be trained on "
                f"and measured. Name other rows, or {name}=0.1 to draw them from the source."
            )
    own = section.own_files
    if len(own) > 1 and _same(own["validation"], own["test"]):
        raise ConfigError(
            f"data.validation and data.test: {own['test'].path} is both: the test would tell nothing that the "
            "validation did not choose. Name two files, or set one of them to 0."
        )
    return layouts


def _layout(name: str, source: Source) -> Layout:
    try:
        if not source.file().exists():
            raise DataError(f"{source.path}: no such data file. It takes {CHOICES}.")
        return source.layout()
    except GladstoneError as error:
        raise ConfigError(f"data.{name}: {error}") from None


def _same(one: Source, other: Source) -> bool:
    """Whether two sources are one file, or copies of one."""
    first, second = one.file(), other.file()
    if first.samefile(second):
        return True
    alike = first.is_file() and second.is_file() and first.stat().st_size == second.stat().st_size
    return alike and sha256_path(first) == sha256_path(second)


def exact_copies(rows: Iterable[Conversation]) -> int:
    """How many rows are exact copies of one before them."""
    seen: set[int] = set()
    count = 0
    for number, row in enumerate(rows, 1):
        seen.add(key_hash(repr(row.messages)))
        count = number - len(seen)
    return count
