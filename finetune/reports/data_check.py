"""`finetune data check`: the format of a file, and its good and bad rows, in constant memory."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune.tokens.refusals import RefusedError, RowCheck
from gladstone.chat.messages import Conversation
from gladstone.formats import Layout, Notes, find_layout, iter_conversations
from gladstone.rows import DEFAULT_OPTIONS, Problems, ReadOptions

ASK = "--recipe NAME checks them"


@dataclass
class Lengths:
    """Lengths of texts in characters: minimum, maximum and total."""

    fewest: int | None = None
    most: int = 0
    total: int = 0

    def add(self, text: str) -> None:
        """Add one text."""
        self.fewest = len(text) if self.fewest is None else min(self.fewest, len(text))
        self.most = max(self.most, len(text))
        self.total += len(text)


@dataclass
class Check:
    """The result of a check: what a file contains."""

    layout: Layout
    problems: Problems
    rows: int = 0
    several_turns: int = 0
    with_system: int = 0
    with_reasoning: int = 0
    with_tools: int = 0
    with_train_flags: int = 0
    base: str = ""  # the base model that checked each row
    refused: Counter[str] = field(default_factory=Counter)  # rows that the base cannot be trained on, by reason

    def __post_init__(self) -> None:
        self.questions, self.answers, self.notes = Lengths(), Lengths(), Notes()

    def add(self, conversation: Conversation) -> None:
        """Add one row."""
        self.rows += 1
        roles = [message.role for message in conversation.messages]
        self.several_turns += roles.count("assistant") > 1
        self.with_system += "system" in roles
        self.with_reasoning += any(message.reasoning is not None for message in conversation.messages)
        self.with_tools += bool(conversation.tools) or any(message.tool_calls for message in conversation.messages)
        self.with_train_flags += any(message.train is not None for message in conversation.messages)
        if not conversation.is_text:
            self.questions.add(next(turn.content for turn in reversed(conversation.messages) if turn.role == "user"))
        self.answers.add(conversation.answer.content)


def check_rows(
    path: Path,
    format_name: str,
    columns: Mapping[str, str] | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    base: tuple[str, RowCheck] | None = None,
) -> Check:
    """Read every row of a file. `base` is the name and the row check of a base model; a refused row is a bad row.

    Raises DataError if the file cannot be read or its format is not recognised.
    """
    check = Check(find_layout(path, format_name, columns, options), Problems())
    if base is not None:
        check.base, ask = base
    for conversation in iter_conversations(path, check.layout, check.problems, check.notes):
        if base is not None:
            try:
                ask(conversation)
            except RefusedError as error:
                check.problems.add(error)
                check.refused[error.reason] += 1
                continue
        check.add(conversation)
    return check


def describe(check: Check) -> str:
    """The check as lines for the terminal."""
    why = f"  ({check.layout.why})" if check.layout.why else ""
    lines = [f"format    {check.layout.name}{why}", f"rows      {check.rows:,} good, {check.problems.count:,} bad"]
    if check.rows:
        parts = {
            "several turns": check.several_turns,
            "a system message": check.with_system,
            "reasoning": check.with_reasoning,
        }
        more = {"tools": check.with_tools, "train flags": check.with_train_flags}
        parts |= {name: count for name, count in more.items() if count}
        lines.append("with      " + ", ".join(f"{name}: {count:,}" for name, count in parts.items()))
        if check.questions.most:
            lines.append(_lengths("question", check.questions, check.rows))
        lines.append(_lengths("answer" if check.questions.most else "text", check.answers, check.rows))
    lines += [f"refused   {count:,} by {check.base}: {reason}" for reason, count in check.refused.items()]
    if not check.base:
        lines.append(f"note      special tokens and chat template of a base are not checked ({ASK})")
    lines += [f"note      {note}" for note in (*check.problems.noted(), *check.notes.lines())]
    return "\n".join(lines)


def _lengths(name: str, lengths: Lengths, rows: int) -> str:
    return f"{name:8}  {lengths.fewest:,} to {lengths.most:,} characters, {lengths.total / rows:,.0f} on average"
