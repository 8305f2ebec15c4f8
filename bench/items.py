"""Data rows to items, through the same reader that training uses."""

from pathlib import Path

from bench.results import Item
from gladstone.errors import DataError
from gladstone.formats import read_conversations


def read_items(path: Path, format_name: str, count: int) -> tuple[tuple[Item, ...], int]:
    """The first `count` rows as items, and how many rows the file has; plain text asks nothing and is passed over.

    Raises DataError for fewer than two rows: intervals need a spread.
    """
    conversations = [row for row in read_conversations(path, format_name) if not row.is_text]
    chosen = conversations[:count]
    if len(chosen) < 2:
        raise DataError(f"{path}: holds {len(conversations)} row, expected at least 2: one row gives no interval.")
    items = tuple(Item(talk.source, talk.prompt, talk.answer, talk.tools) for talk in chosen)
    return items, len(conversations)
