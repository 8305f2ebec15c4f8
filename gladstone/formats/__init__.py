"""Row formats: one file each with one function `read(row, source) -> Conversation`.

Training, proofs and benchmarks read rows through this door only: what is trained is what is measured.
"""

from collections.abc import Callable
from pathlib import Path

from gladstone.chat import Conversation
from gladstone.errors import ConfigError, DataError, listed
from gladstone.formats import alpaca, messages, qa, reasoning
from gladstone.rows import Row, read_rows

Reader = Callable[[Row, str], Conversation]

FORMATS: dict[str, Reader] = {
    "qa": qa.read,
    "alpaca": alpaca.read,
    "messages": messages.read,
    "reasoning": reasoning.read,
}


def read_conversations(path: Path, format_name: str) -> list[Conversation]:
    """Read a data file whole. Raises DataError naming up to ten bad rows and counting the rest."""
    if format_name not in FORMATS:
        raise ConfigError(f"unknown data format {format_name!r}; known: {', '.join(FORMATS)}.")
    reader = FORMATS[format_name]
    conversations, problems = [], []
    for row, source in read_rows(path):
        try:
            conversations.append(reader(row, source))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(listed(f"{path} does not fit the format {format_name!r}", problems))
    return conversations
