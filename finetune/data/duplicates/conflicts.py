"""Reports rows with the same input but different answers. They are kept: only the user knows which answer is right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.duplicates.content_keys import message_text
from finetune.data.duplicates.duplicates import Duplicates
from gladstone.artifacts import write_rows
from gladstone.chat.messages import Conversation
from gladstone.report.terminal import one_line, visible

EXAMPLES, EXCERPT, LONGEST = 2, 60, 2000  # characters: on the terminal, in the file


def write_conflicts(duplicates: Duplicates, path: Path) -> tuple[int, list[str]]:
    """Write each row that contradicts an earlier one; return their number, and the first ones as text."""
    examples: list[str] = []
    count = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal count
        for number, first in duplicates.conflicts():
            row, other = duplicates.rows[number], duplicates.rows[first]
            count += 1
            if len(examples) < EXAMPLES:
                examples.append(_example(row, other))
            yield {
                "source": row.source,
                "conflicts_with": other.source,
                "input": visible(input_text(row)[-LONGEST:]),
                "answer": visible(message_text(row.answer)[:LONGEST]),
                "other_answer": visible(message_text(other.answer)[:LONGEST]),
            }

    write_rows(path, lines())
    return count, examples


def _example(later: Conversation, first: Conversation) -> str:
    answers = (f"“{one_line(message_text(row.answer), EXCERPT)}” ({row.source})" for row in (first, later))
    return f"{excerpt(later)}: {', '.join(answers)}"


def excerpt(row: Conversation) -> str:
    """Return the end of a row's input, which varies most, or the start of a plain text."""
    text = one_line(input_text(row) or message_text(row.answer))
    if len(text) <= EXCERPT:
        return f"“{text}”"
    return f"“{text[:EXCERPT].rstrip()}…”" if row.is_text else f"“…{text[-EXCERPT:].lstrip()}”"


def input_text(row: Conversation) -> str:
    """Return the text of all turns before the answer."""
    return "\n".join(filter(None, map(message_text, row.prompt)))
