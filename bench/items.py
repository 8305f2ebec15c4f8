"""Data rows to items, through the same reader that training uses."""

from pathlib import Path

from bench.results import Item
from gladstone.chat import Conversation
from gladstone.errors import DataError
from gladstone.formats import read_conversations


def read_items(path: Path, format_name: str, count: int) -> tuple[tuple[Item, ...], int]:
    """The first `count` rows as items, and how many rows the file has.

    Raises DataError for fewer than two rows: intervals need a spread.
    """
    conversations = read_conversations(path, format_name)
    chosen = conversations[:count]
    if len(chosen) < 2:
        raise DataError(f"{path}: holds {len(conversations)} row, expected at least 2: one row gives no interval.")
    for talk in chosen:
        _check_unicode(talk)
    items = tuple(Item(talk.source, talk.prompt, talk.answer) for talk in chosen)
    return items, len(conversations)


def _check_unicode(talk: Conversation) -> None:
    for message in talk.messages:
        try:
            (message.content + (message.reasoning or "")).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{talk.source}: the {message.role}'s text holds half of a surrogate pair (\\ud800 to \\udfff), "
                "which no UTF-8 file can hold. Correct the escape."
            ) from None
