"""Shows the pieces of an answer in a chat."""

from typing import TYPE_CHECKING

import click

from gladstone.report.terminal import visible
from runtime.commands.console import Waiting, write

if TYPE_CHECKING:
    from runtime.engine import Completion
    from runtime.text.reasoning_splitter import Piece


class AnswerScreen:
    """Shows the pieces of one answer; if reasoning is hidden, a line mentions it."""

    def __init__(self, *, show_reasoning: bool) -> None:
        self.waiting: Waiting | None = None
        self._show_reasoning = show_reasoning
        self._at_line_start = True
        self._in_reasoning = False

    def piece(self, piece: "Piece") -> None:
        """Show one piece."""
        if self.waiting:
            self.waiting.end()
        text = visible(piece.text)
        if piece.reasoning and not self._show_reasoning:
            text = "" if self._in_reasoning else "(thinking)"
        if self._in_reasoning and not piece.reasoning:
            self.finish()
        self._in_reasoning = piece.reasoning
        if text:
            write(text, dim=piece.reasoning)
            self._at_line_start = text.endswith("\n")

    def finish(self) -> None:
        """Move the cursor to the beginning of a line."""
        if not self._at_line_start:
            click.echo()
        self._at_line_start = True


def cut_by_thought(completion: "Completion", off: str) -> str | None:
    """Advice if reasoning took all tokens of an answer, `off` included; None if it did not."""
    if completion.text or not completion.reasoning or completion.stop_reason not in ("length", "context"):
        return None
    return (
        f"Reasoning took all {completion.generated_tokens:,} tokens, so there is no answer: --max-tokens raises the "
        f"limit, --reasoning-tokens N leaves room for the answer, {off} turns reasoning off."
    )
